"""The layers of the towers are found in every kind of tower, one by one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vlp.encoders.blocks import blocks
from vlp.encoders.openclip import ModelOptions, outline

LAYERS = {
    "vit_tiny_patch16_224": {"Block": 12},
    "eva02_tiny_patch14_224": {"EvaBlock": 12},
    "convnext_tiny": {"ConvNeXtBlock": 18},
    "swin_tiny_patch4_window7_224": {"SwinTransformerBlock": 12},
    "resnet50": {"Bottleneck": 16},
    "efficientnet_b0": {"DepthwiseSeparableConv": 1, "InvertedResidual": 15},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_timm_towers(name: str) -> None:
    with torch.device("meta"):
        tower = timm.create_model(name)
    found = blocks(tower)
    assert Counter(type(block).__name__ for block in found) == LAYERS[name]
    order = {id(module): place for place, module in enumerate(tower.modules())}
    assert [order[id(block)] for block in found] == sorted(order[id(block)] for block in found)


def test_layers_of_openclip_and_transformers(tiny_coca: dict[str, Any], bert_model: dict[str, Any]) -> None:
    coca = outline(ModelOptions(config=tiny_coca)).clip
    assert blocks(coca) == [
        *coca.text.transformer.resblocks,
        *coca.visual.transformer.resblocks,
        *coca.text_decoder.resblocks,
        *coca.text_decoder.cross_attn,
    ]
    bert = outline(ModelOptions(config=bert_model)).clip
    assert blocks(bert.text) == list(bert.text.transformer.encoder.layer)


def test_parts_of_a_layer_are_no_layers() -> None:
    layers = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    assert blocks(nn.ModuleDict({"heads": layers[0]})) == []
    assert blocks(nn.ModuleDict({"layers": nn.ModuleList(layers)})) == layers
