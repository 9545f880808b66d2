"""Real towers whose features are constant but for the rounding of their kernels score 0 in choices and twins."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from vlp.data.benchmark_sets import StoredFile
from vlp.data.choice_sets import Item, choice_set
from vlp.encoders.openclip import ModelOptions, build
from vlp.evaluation.choices import ChoiceTask
from vlp.evaluation.tasks.base import Task
from vlp.evaluation.twins import Twin, TwinTask


class Choices(ChoiceTask):
    table = "kind"

    @staticmethod
    def detects(path):
        return False


class Twins(TwinTask):
    @staticmethod
    def detects(path):
        return False


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[Task]:
    """40 pictures with their captions, the false one of each being the caption of the next."""
    directory = tmp_path_factory.mktemp("collapsed")
    draw, pixels = random.Random(1), np.random.default_rng(0)
    words = ["red", "blue", "circle", "square", "dog", "sits", "under", "tree"]
    images = []
    for number in range(40):
        path = directory / f"{number}.png"
        Image.fromarray(pixels.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
        images.append(StoredFile(path, path.name))
    texts = [f"{number} " + " ".join(draw.choices(words, k=draw.randrange(2, 12))) for number in range(40)]
    choices, twins = Choices(directory), Twins(directory)
    found = choice_set(Item(images[n], texts[n], [texts[n - 1]]) for n in range(40))
    choices.images, choices.texts, choices.choices = found.images, found.texts, found.choices
    twins.images, twins.texts, twins.tables = images, texts, {}
    twins.twins = [Twin((n, n + 1), (n, n + 1)) for n in range(0, 40, 2)]
    return [choices, twins]


def collapsed(tiny_model, where):
    config = {**tiny_model, "embed_dim": 256, "text_cfg": {**tiny_model["text_cfg"], "width": 256, "heads": 4}}
    model = build(ModelOptions(config=config), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        if where in ("text", "both"):
            model.clip.ln_final.weight.zero_()
            model.clip.ln_final.bias.normal_()
        if where in ("image", "both"):
            model.clip.visual.ln_post.weight.zero_()
            model.clip.visual.ln_post.bias.normal_()
        if where == "words":  # the same vector for each token at each place
            for embedding in (model.clip.token_embedding.weight, model.clip.positional_embedding):
                embedding.copy_(torch.randn(1, 256).expand_as(embedding))
    return model


@pytest.mark.parametrize("batch_size", [13, 3, 256])  # 40 inputs: the last batch of the first two has one
@pytest.mark.parametrize("where", ["text", "both", "words"])
def test_a_text_tower_that_collapsed_scores_zero(tiny_model, tasks, where, batch_size):
    model = collapsed(tiny_model, where)
    for task in tasks:
        scores = task.run(model, batch_size)
        assert set(scores.metrics.values()) == {0}
        assert scores.tie_rate == 1 or isinstance(task, TwinTask)  # whose captions can still prefer one picture


@pytest.mark.parametrize("batch_size", [13, 3, 256])
def test_an_image_tower_that_collapsed_scores_zero(tiny_model, tasks, batch_size):
    scores = tasks[1].run(collapsed(tiny_model, "image"), batch_size)
    assert set(scores.metrics.values()) == {0}
