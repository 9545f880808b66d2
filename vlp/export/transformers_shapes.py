"""Which of transformers' architectures a model of open_clip is, read from its modules; what fits none is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from open_clip import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn
from transformers import CLIPConfig, SiglipConfig

from vlp.encoders import vision
from vlp.encoders.captioner import is_causal
from vlp.encoders.special_tokens import special_tokens
from vlp.encoders.transformers_names import Family
from vlp.types import UserError


class Shape(NamedTuple):
    """The configuration that transformers builds the same towers from."""

    family: Family
    config: Any
    image_layers: int
    text_layers: int


def _refuse(reason: str) -> UserError:
    return UserError(f"--to transformers: {reason}; export --to open_clip or --to onnx instead")


def shape_of(clip: Any, tokenizer: Any) -> Shape:
    """
    Raises:
        UserError: neither CLIPModel nor SiglipModel has such towers; the sentence names the part.
    """
    if type(clip) not in (CLIP, CustomTextCLIP):
        raise _refuse(f"a {type(clip).__name__} is neither a CLIPModel nor a SiglipModel")
    tower = getattr(clip, "text", clip)
    if not isinstance(tower, CLIP | TextTransformer):
        raise _refuse(f"a text tower of the kind {type(tower).__name__} is not CLIP's")
    if type(clip.visual) is VisionTransformer:
        return _clip(clip, tower, tokenizer)
    if isinstance(clip.visual, TimmModel) and type(clip.visual.trunk) is TimmTransformer:
        return _siglip(clip, tower)
    raise _refuse(f"an image tower of the kind {vision.kind(clip.visual)} is neither CLIP's nor SigLIP's")


def _clip(clip: Any, tower: Any, tokenizer: Any) -> Shape:
    visual = clip.visual
    misfits = {
        "an image tower with an attentional pool": visual.attn_pool is not None,
        f"an image tower pooled by '{visual.pool_type}'": visual.pool_type != "tok",
        "an image tower without a norm in front (no_ln_pre)": isinstance(visual.ln_pre, nn.Identity),
        "an image tower without a projection": visual.proj is None,
        "pictures or patches that are no squares": not _is_square(visual.image_size, visual.patch_size),
        "a text tower that is not causal": not is_causal(tower),
        "a text tower with a class token": getattr(tower, "cls_emb", None) is not None,
        "a projection of texts with a bias, or none": not isinstance(tower.text_projection, nn.Parameter),
    }
    _check("CLIPModel", misfits)
    towers = {}
    for name, part, norm in (
        ("vision_config", visual, visual.ln_post),
        ("text_config", tower, tower.ln_final),
    ):
        towers[name] = _resblocks(part.transformer.resblocks) | {"layer_norm_eps": norm.eps}
    dim = visual.output_dim
    towers["vision_config"] |= {
        "image_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
        "projection_dim": dim,
    }
    towers["text_config"] |= {**_texts(tower), **_special(clip, tower, tokenizer), "projection_dim": dim}
    config = CLIPConfig(**towers, projection_dim=dim, logit_scale_init_value=clip.logit_scale.item())
    return Shape("clip", config, len(visual.transformer.resblocks), len(tower.transformer.resblocks))


def _special(clip: Any, tower: Any, tokenizer: Any) -> dict[str, int]:
    """CLIPModel takes a text's feature at the first id of its end, as open_clip's pools do, whatever comes behind."""
    pool, eos_id = (clip.text_pool_type, clip.text_eos_id) if tower is clip else (tower.pool_type, tower.eos_id)
    if pool not in ("argmax", "eos"):
        raise _refuse(f"CLIPModel does not have texts pooled by '{pool}'")
    special = special_tokens(tokenizer)
    end = special.end if pool == "argmax" else eos_id
    if end == 2 and pool == "eos":
        raise _refuse("CLIPModel does not have texts that end with id 2, which it reads as another pool")
    # open_clip's tokenizer fills up with 0, but not that of the export; neither reads what stands there.
    padding = special.end if isinstance(tokenizer, SimpleTokenizer) else special.padding
    return {"bos_token_id": special.start, "eos_token_id": end, "pad_token_id": padding}


def _siglip(clip: Any, tower: Any) -> Shape:
    trunk, pool = clip.visual.trunk, clip.visual.trunk.attn_pool
    block = trunk.blocks[0]
    patch = trunk.patch_embed.proj.kernel_size
    misfits = {
        "an image tower that is not pooled by attention (timm_pool: map)": not isinstance(pool, AttentionPoolLatent),
        "an image tower with a class token or registers": trunk.num_prefix_tokens != 0,
        "an image tower with a projection (timm_proj)": len(clip.visual.head) > 0,
        "an image tower of other blocks": any(type(layer) is not Block for layer in trunk.blocks),
        "an image tower with a scale of its layers": not isinstance(getattr(block, "ls1", None), nn.Identity),
        "an image tower with norms of queries and keys": not isinstance(block.attn.q_norm, nn.Identity),
        "an image tower with further norms": not isinstance(trunk.norm_pre, nn.Identity)
        or not isinstance(trunk.fc_norm, nn.Identity),
        "pictures or patches that are no squares": not _is_square(clip.visual.image_size, patch),
        "a text tower that is causal": getattr(tower, "attn_mask", None) is not None,
        "a text tower with a class token": getattr(tower, "cls_emb", None) is not None,
        f"texts pooled by '{getattr(tower, 'pool_type', '')}'": getattr(tower, "pool_type", "") != "last",
        "a projection of texts without a bias": not isinstance(tower.text_projection, nn.Linear),
    }
    _check("SiglipModel", misfits)
    if pool.num_heads != block.attn.num_heads or type(pool.mlp.act) is not type(block.mlp.act):
        raise _refuse("SiglipModel does not have a pool with heads or an activation of its own")
    image = {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _activation(block.mlp.act),
        "layer_norm_eps": trunk.norm.eps,
        "image_size": clip.visual.image_size[0],
        "patch_size": patch[0],
    }
    text = _resblocks(tower.transformer.resblocks) | _texts(tower)
    text |= {"layer_norm_eps": tower.ln_final.eps, "projection_size": tower.text_projection.out_features}
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # the tokenizer has its own
    config = SiglipConfig(vision_config=image, text_config=text)
    return Shape("siglip", config, len(trunk.blocks), len(tower.transformer.resblocks))


def _check(kind: str, misfits: dict[str, bool]) -> None:
    found = next((name for name, is_there in misfits.items() if is_there), None)
    if found:
        raise _refuse(f"{kind} does not have {found}")


def _is_square(*sizes: Sequence[int]) -> bool:
    return all(height == width for height, width in sizes)


def _texts(tower: Any) -> dict[str, int]:
    return {"vocab_size": tower.vocab_size, "max_position_embeddings": tower.context_length}


def _resblocks(blocks: nn.ModuleList) -> dict[str, Any]:
    """Sizes of open_clip's plain blocks."""
    for block in blocks:
        plain = type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)
        if not plain or not isinstance(block.ls_1, nn.Identity):
            raise _refuse("its architectures do not have blocks of another kind, or with a scale of their layers")
    first: Any = blocks[0]
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": _activation(first.mlp.gelu),
    }


def _activation(module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    approximate = getattr(module, "approximate", "tanh" if type(module).__name__ == "GELUTanh" else "none")
    if not isinstance(module, nn.GELU) and type(module).__name__ not in ("GELU", "GELUTanh"):
        raise _refuse(f"its towers do not have the activation {type(module).__name__}")
    return "gelu_pytorch_tanh" if approximate == "tanh" else "gelu"
