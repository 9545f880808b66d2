"""An image tower and a text tower: open_clip's model, fed with uint8 pictures and token ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from vlp.data.transforms import PictureFormat, eval_transform
from vlp.encoders import captioner, pad_free, vision
from vlp.encoders.blocks import blocks
from vlp.encoders.captioner import CaptioningHead, CaptionPath
from vlp.encoders.packing import TextShapes
from vlp.encoders.recompute import Policy, recompute
from vlp.encoders.special_tokens import SpecialTokens, special_tokens
from vlp.encoders.tokens import States, image_states, marks_of, text_states, word_mask
from vlp.encoders.vision import PatchDropout
from vlp.encoders.vocabulary_loss import cross_entropy


class CaptionCounts(NamedTuple):
    """How the ids of captions add up to a loss: the mean of the global batch over all of them.

    ``mean_length`` is the number of ids told of a caption, in the mean over the global batch: with it the mean over any
    rows of (a caption's sum / ``mean_length``) has that mean as its own mean over micro-batches and processes.
    """

    mean_length: Tensor
    smoothing: float


class TwoTower(nn.Module):
    """open_clip's model as ``clip``, with its tokenizer and its picture format.

    ``openclip_config`` is ``{"model_cfg", "preprocess_cfg"}`` as open_clip writes it, enough to build the
    same towers again. ``weights`` tells where the values come from: ``random``, ``model`` or ``ema`` (the
    average of a run). ``captioner`` tells captions where ``clip`` is no CoCa, which does so itself. ``fusion`` reads
    texts together with pictures, for objectives that ask for it; it is no part of what is exported.
    """

    HEAD = "captioner."  # before the names of the head's weights, where they stand beside those of ``clip``

    clip: Any
    captioner: CaptioningHead | None
    fusion: nn.Module | None
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        openclip_config: dict[str, Any],
        weights: Literal["random", "model", "ema"] = "random",
    ) -> None:
        super().__init__()
        self.clip = clip
        self.captioner = None
        self.fusion = None
        self.tokenizer = tokenizer
        self.openclip_config = openclip_config
        self.weights = weights
        size = self.clip.visual.image_size
        pixels = openclip_config["preprocess_cfg"]
        self.picture_format = PictureFormat(
            size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            mean=tuple(pixels["mean"]),
            std=tuple(pixels["std"]),
            interpolation=pixels["interpolation"],
            resize_mode=pixels["resize_mode"],
            fill_color=pixels["fill_color"],
        )
        parts = (part for block in blocks(self.clip.visual) for part in block.modules())
        self._is_convolutional = any(isinstance(part, nn.Conv2d) for part in parts)
        self.register_buffer("mean_C11", torch.tensor(pixels["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(pixels["std"]).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the multiplier of the cosines."""
        return self.clip.logit_scale

    @property
    def eval_transform(self) -> Callable[[Image.Image], Tensor]:
        """Picture -> uint8 CHW, as these towers want it when they are evaluated."""
        return eval_transform(self.picture_format)

    def normalise(self, image_NCHW: Tensor) -> Tensor:
        """uint8 pixels -> fp32, standardised per channel as by ToTensor and Normalize, to the bit."""
        # The loader's pictures are channels last in memory, which makes sums with a value a channel slow on a CPU.
        pixels = image_NCHW.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self.mean_C11).div_(self.std_C11)

    def _pixels(self, image_NCHW: Tensor) -> Tensor:
        """As `normalise`, in the layout that the image tower computes fastest in: convolutions want channels last."""
        layout = torch.channels_last if self._is_convolutional else torch.contiguous_format
        return self.normalise(image_NCHW).contiguous(memory_format=layout)

    def encode_image(self, image_NCHW: Tensor, dropout: PatchDropout | None = None) -> Tensor:
        """Features ND of uint8 pictures, not normalised to length 1."""
        return vision.encode(self.clip, self._pixels(image_NCHW), dropout)

    def encode_text(self, text_NL: Tensor, shapes: TextShapes | None = None) -> Tensor:
        """Features ND of token ids, not normalised to length 1; ids behind `text_lengths` may be left out.

        With ``shapes``, those of the `text_lengths`, the padding behind these is not computed.
        """
        return pad_free.encode(self.clip, text_NL, shapes)

    def text_lengths(self, text_NL: Tensor) -> Tensor:
        """Of each text, the number of its first ids on which its feature depends (N)."""
        return pad_free.used_lengths(self.clip, text_NL)

    def image_states(self, image_MCHW: Tensor, rows: int | None = None, dropout: PatchDropout | None = None) -> States:
        """Features of uint8 pictures, and the states of the patches of the first ``rows``."""
        return image_states(self.clip.visual, self._pixels(image_MCHW), rows, dropout)

    def text_states(self, text_ML: Tensor, rows: int | None = None) -> States:
        """Features of token ids, and the states of the positions of the first ``rows``."""
        return text_states(self.clip, text_ML, rows)

    def encode_image_tokens(self, image_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features ND and those of the patches NPD, both in the common space and not normalised."""
        found = self.image_states(image_NCHW)
        return found.feature_MD, found.in_common()

    def encode_text_tokens(self, text_NL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ND, those of all positions NLD, and which of them are words (NL)."""
        found = self.text_states(text_NL)
        return found.feature_MD, found.in_common(), self._words(text_NL, found)

    def _words(self, text_NL: Tensor, found: States) -> Tensor:
        return word_mask(self.clip, text_NL, marks_of(self.tokenizer), found.states_NLW.shape[1])

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """Ids that begin, end and fill up a text."""
        return special_tokens(self.tokenizer)

    def caption_path(self) -> CaptionPath | None:
        """How it tells captions; None if it does not.

        Raises:
            UserError: its text tower, which the captions would be told by, is not causal.
        """
        if self.captioner is None and not captioner.is_coca(self.clip):
            return None
        captioner.check_causal(self._caption_half(), coca=self.captioner is None)
        return self._caption_path()

    @property
    def tells_by_its_text_tower(self) -> bool:
        """Whether captions, if it tells any, are told by the states of the text tower."""
        return self.captioner is None or self.captioner.own_half is None

    def _caption_half(self) -> Any:
        own_half = None if self.captioner is None else self.captioner.own_half
        return getattr(self.clip, "text", self.clip) if own_half is None else own_half

    def _caption_path(self) -> CaptionPath:
        """The same unchecked, for every step of training: to look at a mask waits for the device."""
        head, half = self.captioner, self._caption_half()
        # As the tower itself, which normalises these states only where no class token stands behind them.
        norm = half.ln_final if getattr(half, "cls_emb", None) is None else nn.Identity()
        if head is None:
            return CaptionPath(half, norm, self.clip.text_decoder)
        return CaptionPath(half, lambda states: head.text(norm(states)), head.decoder)

    def caption_memory(self, image_NCHW: Tensor) -> Tensor:
        """What `caption_path`'s decoder attends to, NQW, of uint8 pictures."""
        states_NPW = self.image_states(image_NCHW).states_NLW
        return states_NPW if self.captioner is None else self.captioner.memory(states_NPW)

    def forward(
        self,
        image_VNCHW: Tensor,
        text_VNL: Tensor,
        wanted: frozenset[str] = frozenset(),
        on_text: Callable[[Tensor], object] | None = None,
        masked_NL: Tensor | None = None,
        captions: CaptionCounts | None = None,
        dropout: PatchDropout | None = None,
        text_shapes: TextShapes | None = None,
    ) -> dict[str, Tensor]:
        """What objectives need under its names, rows first.

        Always ``image`` and ``text`` (N V D, not of length 1), ``logit_scale`` (the logarithm) and ``logit_bias`` (0
        without one); ``image_tokens`` (N P D) and ``text_tokens`` (N L D) with ``text_mask`` (N L), both of the first
        view, where ``wanted`` names them; ``masked_tokens`` with ``masked_mask``, of the texts ``masked_NL``. Where
        ``on_text`` is given, it gets ``text`` before the image tower begins: time to send it. With ``captions``, the
        scalars ``caption_loss`` and ``caption_nll`` (without smoothing and gradient) of the first captions, in nats.
        ``dropout`` leaves patches of the pictures out. ``text_shapes``, of all texts of ``text_VNL``, spare their
        padding where nothing but features is wanted of them.
        """
        telling = captions is not None
        outputs = self._text(text_VNL, wanted, telling, text_shapes)
        if on_text is not None:
            on_text(outputs["text"])
        outputs |= self._image(image_VNCHW, wanted, telling, dropout)
        if captions is not None:
            states_NLW, memory_NQW = outputs.pop("caption_states", None), outputs.pop("caption_memory")
            outputs |= self._caption_loss(text_VNL[0], states_NLW, memory_NQW, captions)
        scale, bias = self.clip.logit_scale, self.clip.logit_bias
        # Without a dimension, also where an engine has given them one.
        outputs["logit_scale"] = scale.view(())
        outputs["logit_bias"] = torch.zeros_like(scale).view(()) if bias is None else bias.view(())
        if masked_NL is not None:  # last, so that the passes with and without it draw the same dropout for the others
            _, outputs["masked_tokens"], outputs["masked_mask"] = self.encode_text_tokens(masked_NL)
        return outputs

    # All views go through a tower at once, whatever is wanted of the first besides: so the passes with and without it
    # draw the same dropout, and cached gradients are those of what was seen.

    def _text(
        self, text_VNL: Tensor, wanted: frozenset[str], telling: bool, shapes: TextShapes | None
    ) -> dict[str, Tensor]:
        (views, rows), head = text_VNL.shape[:2], self.captioner
        with_tokens, with_states = "text_tokens" in wanted, telling and self.tells_by_its_text_tower
        if not with_tokens and not with_states:
            return {"text": _by_view(self.encode_text(text_VNL.flatten(0, 1), shapes), views)}
        found = self.text_states(text_VNL.flatten(0, 1), rows)
        outputs = {"text": _by_view(found.feature_MD, views)}
        if with_tokens:
            outputs |= {"text_tokens": found.in_common(), "text_mask": self._words(text_VNL[0], found)}
        if with_states:
            outputs["caption_states"] = found.states_NLW if head is None else head.text(found.states_NLW)
        return outputs

    def _image(
        self, image_VNCHW: Tensor, wanted: frozenset[str], telling: bool, dropout: PatchDropout | None
    ) -> dict[str, Tensor]:
        (views, rows), head = image_VNCHW.shape[:2], self.captioner
        if not telling and "image_tokens" not in wanted:
            return {"image": _by_view(self.encode_image(image_VNCHW.flatten(0, 1), dropout), views)}
        found = self.image_states(image_VNCHW.flatten(0, 1), rows, dropout)
        outputs = {"image": _by_view(found.feature_MD, views)}
        if "image_tokens" in wanted:
            outputs["image_tokens"] = found.in_common()
        if telling:
            outputs["caption_memory"] = found.states_NLW if head is None else head.memory(found.states_NLW)
        return outputs

    def _caption_loss(
        self, text_NL: Tensor, states_NLW: Tensor | None, memory_NQW: Tensor, counts: CaptionCounts
    ) -> dict[str, Tensor]:
        """``states_NLW``: of the text tower, as the decoder reads them; None where a half of its own gives them."""
        path, told_NL = self._caption_path(), self.special_tokens.told(text_NL)
        longest = int(told_NL.sum(1).max())  # padding behind it has no part in what stands before it
        told_NL, said_NL = told_NL[:, :longest], text_NL[:, :longest]
        read_NLW = path.to_decoder(path.half_states(said_NL)) if states_NLW is None else states_NLW[:, :longest]
        states_NLW = captioner.decode(path.decoder, memory_NQW, read_NLW)
        labels_M = text_NL[:, 1 : longest + 1][told_NL]
        sums = cross_entropy(states_NLW[told_NL], path.head_WV, labels_M, counts.smoothing)
        loss, nll = (total / (len(text_NL) * counts.mean_length) for total in sums)
        return {"caption_loss": loss, "caption_nll": nll}

    def train(self, mode: bool = True) -> TwoTower:
        """As ``nn.Module.train``, but locked parts stay in evaluation mode: no dropout, fixed statistics."""
        super().train(mode)
        for module in self.clip.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

    def use_gradient_checkpointing(self, policy: Policy = "full") -> None:
        """Compute activations again in the backward pass, all or those that cost little: less memory, same gradients.

        Raises:
            UserError: no layer can.
        """
        recompute(self, policy)

    @torch.no_grad()
    def set_temperature(self, temperature: float) -> None:
        """Fix 1 / multiplier: it is no longer learned."""
        self.clip.logit_scale.requires_grad_(False).fill_(-math.log(temperature))

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float = 100.0) -> None:
        """Keep the multiplier between 1 and ``maximum``, in place; for after an optimiser step."""
        self.clip.logit_scale.clamp_(0.0, math.log(maximum))

    def copied(self) -> TwoTower:
        """A copy with weights of its own; the tokenizer, whose vocabulary would take a second, is the same."""
        return deepcopy(self, {id(self.tokenizer): self.tokenizer})

    def averaged(self) -> dict[str, nn.Module]:
        """What evaluation uses, and a run may average: modules by the prefix of their weights' names."""
        return {"": self.clip} | ({self.HEAD: self.captioner} if self.captioner is not None else {})

    def parameters_by_tower(self, trainable_only: bool = False) -> dict[str, int]:
        """Number of parameters: ``image``, ``text``, ``captioner``, ``other`` (logit scale and bias), ``fusion``."""
        count = {"image": 0, "text": 0, "other": 0}
        for name, parameter in self.clip.named_parameters():
            if parameter.requires_grad or not trainable_only:
                count[_tower(name)] = count.get(_tower(name), 0) + parameter.numel()
        if self.captioner is not None:
            count["captioner"] = sum(p.numel() for p in self.captioner.parameters())
        if self.fusion is not None:
            count["fusion"] = sum(p.numel() for p in self.fusion.parameters())
        return count


def _by_view(features: Tensor, views: int) -> Tensor:
    """(V N) D -> N V D."""
    return features.unflatten(0, (views, -1)).transpose(0, 1)


def _tower(parameter: str) -> str:
    first = parameter.split(".")[0]
    if first == "visual":
        return "image"
    if first == "text_decoder":
        return "captioner"
    return "other" if first in ("logit_scale", "logit_bias") else "text"
