"""What is said of a model's pictures and texts."""

from __future__ import annotations

import json

from vlp.encoders import inputs
from vlp.encoders.openclip import ModelOptions, build


def test_a_line_and_a_mapping(tiny_model):
    picture = {"mean": (0.5, 0.5, 0.25), "std": (0.25, 0.25, 1 / 3), "interpolation": "bilinear"}
    model = build(ModelOptions(config=tiny_model, picture=picture), seed=0)
    assert inputs.as_line(model) == (
        "pictures: 32 x 32 pixels, its shorter side resized, the centre cropped (bilinear), mean 0.5, 0.5, 0.25, "
        "std 0.25, 0.25, 0.3333; texts: 16 ids of SimpleTokenizer, filled up with 0, cleaning: lower"
    )
    said = json.loads(json.dumps(inputs.as_dict(model)))
    assert said["pictures"]["std"] == [0.25, 0.25, 0.333333]
    assert said["texts"] == {"tokenizer": "SimpleTokenizer", "length": 16, "padding": 0, "cleaning": "lower"}
    padded = build(ModelOptions(config=tiny_model, picture={"resize_mode": "longest", "fill_color": 7}), seed=0)
    assert inputs.as_dict(padded)["pictures"]["fill_color"] == 7
    assert "the rest filled" in inputs.as_line(padded)


def test_texts_of_a_transformers_tower(bert_model):
    texts = inputs.of_texts(build(ModelOptions(config=bert_model), seed=0))
    assert (texts["tokenizer"], texts["length"], texts["cleaning"]) == ("BertTokenizer", 16, "whitespace")
