"""From a picture to its caption, word by word: CoCa's decoder, of open_clip's own model or as a head on two towers.

A captioner has a causal half that reads the caption alone (unimodal), and a decoder whose causal layers also attend to
the picture (multimodal) and tell the next id from each. open_clip's CoCa has both halves and pools the picture's tokens
itself. `CaptioningHead` gives them to any other model: an attentional pooler over the image tower's tokens, the
decoder, and a half of its own where the text tower is not causal.

Source: Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import AttentionalPooler, MultimodalTransformer, TextTransformer
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from vlp.types import UserError

_PLACES_STD = 0.5  # about that of a map's states: with a fifth of it left is told from right later
_HEAD_STD = 0.02  # of the vocabulary's weights: at first all ids are about as likely, a loss of ln V


class CaptionerOptions(BaseModel, frozen=True, extra="forbid"):
    """A captioning head on a model that is no CoCa; it is kept beside the model, which stays what it is."""

    layers: int = Field(
        2, ge=1, description="of the decoder: self-attention over the caption, cross-attention to the picture"
    )
    width: int = Field(256, ge=1, description="of the decoder's states")
    heads: int = Field(4, ge=1, description="of attention; a divisor of the width")
    queries: int = Field(32, ge=1, description="tokens that the attentional pooler makes of a picture's patches")
    text_layers: int = Field(
        0, ge=0, description="of a causal half of its own; 0 reads the states of the text tower, which must be causal"
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> CaptionerOptions:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}: change one of them")
        return self


class CaptioningHead(nn.Module):
    """CoCa's captioning parts for two towers.

    Args:
        image_width: of the states of patches, as the image tower gives them.
        places: number of patches of a picture where they do not know their places, as those of a convolutional tower;
            None where they do.
        text_width: of the states of positions, as the text tower gives them.
        vocab_size: ids of the tokenizer, V.
        context_length: ids of the longest caption.
    """

    def __init__(
        self,
        options: CaptionerOptions,
        image_width: int,
        places: int | None,
        text_width: int,
        vocab_size: int,
        context_length: int,
    ) -> None:
        super().__init__()
        width, heads = options.width, options.heads
        self.places = nn.Parameter(torch.randn(places, image_width) * _PLACES_STD) if places else None
        self.pooler = AttentionalPooler(width, image_width, n_head=heads, n_queries=options.queries)
        self.image_norm = nn.LayerNorm(width)
        self.own_half: TextTransformer | None = None
        if options.text_layers:
            self.own_half = TextTransformer(
                context_length,
                vocab_size,
                width,
                heads,
                options.text_layers,
                output_dim=None,
                proj_type="none",
                output_tokens=True,
            )
        self.text = nn.Linear(width if options.text_layers else text_width, width)
        self.decoder = MultimodalTransformer(width, options.layers, heads, context_length, output_dim=vocab_size)
        initialise(self.decoder)

    def memory(self, image_NPW: Tensor) -> Tensor:
        """What the decoder attends to, NQW, from the states of patches."""
        return self.image_norm(self.pooler(image_NPW if self.places is None else image_NPW + self.places))


@dataclass(frozen=True)
class CaptionPath:
    """The way from ids to the next ones, the same for CoCa and a head.

    Attributes:
        half: causal tower over the caption alone, with open_clip's ``token_embedding``, ``positional_embedding`` and
            ``transformer``.
        to_decoder: states of ``half.transformer`` (NLW) -> what the decoder reads; position by position.
        decoder: open_clip's, with ``resblocks``, ``cross_attn``, ``ln_final`` and ``text_projection`` (W V).
    """

    half: Any
    to_decoder: Callable[[Tensor], Tensor]
    decoder: MultimodalTransformer

    @property
    def head_WV(self) -> Tensor:
        """Weights of the vocabulary: logits are states @ head."""
        return self.decoder.text_projection

    @property
    def context_length(self) -> int:
        """Ids of the longest text that it can go on with."""
        return min(len(self.decoder.attn_mask), len(self.half.positional_embedding))

    def half_states(self, text_NL: Tensor) -> Tensor:
        """States of the causal half, NLW, each of its own id and those before it."""
        length = text_NL.shape[1]
        states = self.half.token_embedding(text_NL) + self.half.positional_embedding[:length]
        return self.half.transformer(states, attn_mask=self.decoder.attn_mask[:length, :length])

    def states(self, text_NL: Tensor, memory_NQW: Tensor) -> Tensor:
        """The decoder's states NLW, from which ``head_WV`` tells the id after each."""
        return decode(self.decoder, memory_NQW, self.to_decoder(self.half_states(text_NL)))


def decode(decoder: MultimodalTransformer, memory_NQW: Tensor, text_NLW: Tensor) -> Tensor:
    """What open_clip's decoder has just before it multiplies with the vocabulary, NLW."""
    mask = decoder.attn_mask[: text_NLW.shape[1], : text_NLW.shape[1]]
    for block, cross in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        text_NLW = block(text_NLW, attn_mask=mask)
        text_NLW = cross(text_NLW, k_x=memory_NQW, v_x=memory_NQW)
    return decoder.ln_final(text_NLW)


@torch.no_grad()
def initialise(decoder: MultimodalTransformer) -> None:
    """Give a decoder from scratch its values, as open_clip's text towers get theirs.

    open_clip 3.3.0 never calls ``MultimodalTransformer.init_parameters``, which could not run: the weights of the
    vocabulary stay the memory they were allocated in, and logits are huge or not finite.
    """
    width, layers = decoder.width, decoder.layers
    for block in (*decoder.resblocks, *decoder.cross_attn):
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    nn.init.normal_(decoder.text_projection, std=_HEAD_STD)


def is_coca(clip: Any) -> bool:
    return isinstance(getattr(clip, "text_decoder", None), MultimodalTransformer)


def is_causal(tower: Any) -> bool:
    """Whether no position of a text tower sees a later one, a class token behind all of them apart."""
    if not isinstance(tower, CLIP | TextTransformer) or tower.attn_mask is None:
        return False
    if tower.attn_mask.is_meta:  # without values; open_clip has no other mask than a causal one
        return True
    later = torch.ones_like(tower.attn_mask, dtype=torch.bool).triu(1)
    return bool(tower.attn_mask[later].isneginf().all())


def check_causal(tower: Any, coca: bool) -> None:
    """Refuse a text tower that sees the words that captions have to tell.

    Raises:
        UserError: with the cure, which is another one for a CoCa than for a head.
    """
    if not is_causal(tower):
        cure = "set model.captioner.text_layers, such as 2, for a causal half of its own"
        if coca:
            cure = "choose a CoCa with a causal tower of open_clip, such as coca_ViT-B-32"
        kind = type(tower).__name__
        raise UserError(f"model: a text tower of the kind {kind} sees the words that a captioner has to tell: {cure}")


@torch.no_grad()
def check_coca(model: Any) -> None:
    """Refuse, before a run begins, a CoCa whose parts do not fit each other; open_clip builds it all the same.

    Args:
        model: a `TwoTower` of it, on any device; on ``meta``, too.
    """
    picture_NCHW = torch.zeros(1, 3, *model.picture_format.size, dtype=torch.uint8, device=model.device)
    text_NL = model.tokenizer([""]).to(model.device)
    training = model.training
    model.eval()
    try:
        model.caption_path().states(text_NL[:, :-1], model.caption_memory(picture_NCHW))
    except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"model: the parts of this CoCa do not fit each other ({reason}): the text tower, the tokens of pictures "
            "and multimodal_cfg must have one width, and multimodal_cfg's context_length must be the text tower's"
        ) from error
    finally:
        model.train(training)
