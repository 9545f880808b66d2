"""States id by id equal those of the whole text, whatever path tells the captions and however its texts branch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlp.encoders import openclip
from vlp.encoders.captioner import CaptionerOptions, CaptionPath
from vlp.encoders.incremental import IncrementalDecoder
from vlp.types import UserError

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16}
HEAD = CaptionerOptions(layers=2, width=16, heads=2, queries=3)
COCA = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 5,
        "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "ls_init_value": 0.5},  # with LayerScale
}
CLIP = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
MODELS = {
    "CoCa": openclip.ModelOptions(config=COCA),
    "head on the class CLIP": openclip.ModelOptions(config=CLIP, captioner=HEAD),
    "head on a text tower of its own": openclip.ModelOptions(config={**CLIP, "custom_text": True}, captioner=HEAD),
    "head with a half of its own": openclip.ModelOptions(
        config=CLIP, captioner=CaptionerOptions(**{**HEAD.model_dump(), "text_layers": 2})
    ),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def path_and_memory(options: openclip.ModelOptions, pictures: int = 3) -> tuple[CaptionPath, Tensor]:
    model = openclip.build(options, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms that do something
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        memory_NQW = model.caption_memory(torch.randint(256, (pictures, 3, 16, 16), generator=generator).byte())
    path = model.caption_path()
    assert path is not None
    return path, memory_NQW


@pytest.fixture(params=MODELS)
def told(request: pytest.FixtureRequest) -> tuple[CaptionPath, Tensor]:
    return path_and_memory(MODELS[request.param])


@torch.no_grad()
def test_one_text_a_picture_after_a_first_chunk(told):
    path, memory_NQW = told
    text_NL = torch.randint(49408, (3, path.context_length))
    whole_NLW = path.states(text_NL, memory_NQW)
    for first in (1, 5, path.context_length):
        decoder = IncrementalDecoder(path, memory_NQW, path.context_length)
        found = [decoder.start(text_NL[:, :first])]
        found += [decoder.step(text_NL[:, [place]]) for place in range(first, path.context_length)]
        torch.testing.assert_close(torch.cat(found, 1), whole_NLW, **CLOSE)


@torch.no_grad()
def test_beams_that_branch_and_pictures_that_leave(told):
    """Texts built beside it, read as a whole each time."""
    path, memory_NQW = told
    generator = torch.Generator().manual_seed(1)
    beams = 4
    decoder = IncrementalDecoder(path, memory_NQW, path.context_length, beams)
    begin_NL = torch.randint(49408, (3, 2), generator=generator)
    decoder.start(begin_NL)
    text_NKL = begin_NL[:, None].expand(-1, beams, -1)
    for place in range(2, path.context_length):
        if place == 5:
            kept = torch.tensor([2, 0])
            decoder.keep(kept)
            text_NKL, memory_NQW = text_NKL[kept], memory_NQW[kept]
        ids_NK, parent_NK = (torch.randint(n, text_NKL.shape[:2], generator=generator) for n in (49408, beams))
        text_NKL = text_NKL.gather(1, parent_NK[..., None].expand_as(text_NKL))
        text_NKL = torch.cat([text_NKL, ids_NK[..., None]], 2)
        found_NKW = decoder.step(ids_NK, parent_NK)
        whole_MLW = path.states(text_NKL.flatten(0, 1), memory_NQW.repeat_interleave(beams, 0))
        torch.testing.assert_close(found_NKW.flatten(0, 1), whole_MLW[:, -1], **CLOSE)


@torch.no_grad()
def test_each_id_and_each_picture_go_through_the_layers_once():
    path, memory_NQW = path_and_memory(MODELS["CoCa"])
    seen: list[torch.Size] = []
    cross = path.decoder.cross_attn[0]
    cross.ln_1_kv.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    read: list[int] = []
    path.half.token_embedding.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    decoder = IncrementalDecoder(path, memory_NQW, 6, beams=4)
    decoder.start(torch.zeros(3, 2, dtype=torch.long))
    for _ in range(4):
        decoder.step(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long))
    assert seen == [memory_NQW.shape], "the picture's keys, once and not repeated for the beams"
    assert read == [6, 12, 12, 12, 12], "a common beginning is read once, then an id a text"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_half_precision(kind):
    path, memory_NQW = path_and_memory(MODELS["CoCa"])
    text_NL = torch.randint(49408, (3, 6))
    exact_NLW = path.states(text_NL, memory_NQW)
    if kind == "bfloat16":
        path.half.bfloat16(), path.decoder.bfloat16()
        memory_NQW = memory_NQW.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        decoder = IncrementalDecoder(path, memory_NQW, 6)
        found = [decoder.start(text_NL[:, :2])] + [decoder.step(text_NL[:, [place]]) for place in range(2, 6)]
        whole_NLW = path.states(text_NL, memory_NQW)
    found_NLW = torch.cat(found, 1)
    assert found_NLW.dtype == whole_NLW.dtype
    error, rounding = ((one - exact_NLW).abs().mean() for one in (found_NLW, whole_NLW))
    assert error < 2 * rounding
    assert rounding < 0.05


def test_blocks_of_another_class_are_refused_with_the_cure():
    config = {**COCA, "text_cfg": {**COCA["text_cfg"], "qk_norm": True}}
    path, memory_NQW = path_and_memory(openclip.ModelOptions(config=config))
    with pytest.raises(UserError, match=r"CustomResidualAttentionBlock.*qk_norm.*text_layers"):
        IncrementalDecoder(path, memory_NQW, 6)
