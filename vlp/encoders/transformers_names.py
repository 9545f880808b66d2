"""What transformers and open_clip call the same weights, in one table that is read both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Size, Tensor

from vlp.types import UserError

Family = Literal["clip", "siglip"]


class Row(NamedTuple):
    """Tensors of open_clip and of transformers with the same values, one behind the other along the first axis."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TIMM_BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_CLIP_IMAGE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
_CLIP_IMAGE_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_SIGLIP_IMAGE = {
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
}
_SIGLIP_IMAGE_MODULES = {
    "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
    "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
    "visual.trunk.attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
    "visual.trunk.attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
}
_BUFFERS = ("position_ids",)  # older files hold them; they are 0, 1, 2, ...


def rows(family: Family, image_layers: int, text_layers: int, text: str = "text.") -> list[Row]:
    """The table of a model; ``text`` stands before the names of open_clip's text tower (the class CLIP has none)."""
    found = list(_single({f"{text}{ours}": theirs for ours, theirs in _TEXT.items()}))
    found += _modules({f"{text}ln_final": "text_model.final_layer_norm"})
    found += _layers(f"{text}transformer.resblocks", "text_model.encoder.layers", text_layers, _BLOCK, "attn.in_proj_")
    found += _single({"logit_scale": "logit_scale"})
    if family == "clip":
        found += [*_single(_CLIP_IMAGE), *_modules(_CLIP_IMAGE_NORMS)]
        blocks, table, joined = "visual.transformer.resblocks", _BLOCK, "attn.in_proj_"
        found.append(Row(("visual.proj",), ("visual_projection.weight",), transposed=True))
        found.append(Row((f"{text}text_projection",), ("text_projection.weight",), transposed=True))
    else:
        found += [*_single(_SIGLIP_IMAGE), *_modules(_SIGLIP_IMAGE_MODULES)]
        found += _modules({f"{text}text_projection": "text_model.head"})
        found += _single({"logit_bias": "logit_bias"})
        blocks, table, joined = "visual.trunk.blocks", _TIMM_BLOCK, "attn.qkv."
        pool, head = "visual.trunk.attn_pool", "vision_model.head.attention.in_proj_"
        found += [Row((f"{pool}.q.{kind}", f"{pool}.kv.{kind}"), (head + kind,)) for kind in ("weight", "bias")]
    return found + list(_layers(blocks, "vision_model.encoder.layers", image_layers, table, joined))


def convert(
    values: Mapping[str, Tensor], table: Iterable[Row], shapes: Mapping[str, Size], to: Literal["ours", "theirs"]
) -> dict[str, Tensor]:
    """The weights ``values`` under the other library's names and in its ``shapes``.

    Raises:
        UserError: a tensor is missing, has another shape, or is one that the other library has no place for.
    """
    left, found = {name for name in values if not name.endswith(_BUFFERS)}, {}
    for row in table:
        sources, targets = (row.theirs, row.ours) if to == "ours" else (row.ours, row.theirs)
        missing = [name for name in sources if name not in values]
        if missing:
            raise UserError(f"{missing[0]} is missing: the weights are not those of the architecture described")
        left.difference_update(sources)
        parts = [values[name] for name in sources]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if row.transposed:
            joined = joined.T
        pieces = [joined] if len(targets) == 1 else joined.split([shapes[name][0] for name in targets])
        for name, piece in zip(targets, pieces, strict=True):
            if _sides(piece.shape) != _sides(shapes[name]):
                raise UserError(
                    f"{sources[0]} has the shape {tuple(parts[0].shape)}, where the architecture described wants "
                    f"{tuple(shapes[name])} in {name}"
                )
            found[name] = piece.reshape(shapes[name]).contiguous()
    if left:
        raise UserError(f"{min(left)} has no place in the other library's architecture")
    return found


def _sides(shape: Size) -> list[int]:
    return [side for side in shape if side != 1]


def _single(names: Mapping[str, str]) -> Iterator[Row]:
    return (Row((ours,), (theirs,)) for ours, theirs in names.items())


def _modules(names: Mapping[str, str]) -> Iterator[Row]:
    pairs = ((f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in names.items() for kind in ("weight", "bias"))
    return _single(dict(pairs))


def _layers(ours: str, theirs: str, number: int, block: Mapping[str, str], joined: str) -> Iterator[Row]:
    """``joined`` stands before ``weight`` and ``bias`` of queries, keys and values, which are one tensor of ours."""
    for layer in range(number):
        yield from _modules({f"{ours}.{layer}.{a}": f"{theirs}.{layer}.{b}" for a, b in block.items()})
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
            yield Row((f"{ours}.{layer}.{joined}{kind}",), parts)
