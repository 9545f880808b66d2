"""A teacher sees what the student sees, in its own format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.encoders.teacher import Teacher
from vlp.encoders.two_tower import TwoTower
from vlp.types import Batch, UserError

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CAPTIONS = ("a red circle", "a blue square left of a red circle, and much more than twelve tokens hold", "a circle")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("teacher")
    save_openclip_directory(build(ModelOptions(config=CONFIG), seed=1), place)
    return f"local-dir:{place}"


def batch(size: int, views: int = 2) -> Batch:
    """Pictures that are smooth, so that their size hardly matters; a last view that is another picture."""
    random = torch.Generator().manual_seed(2)
    coarse = torch.rand(views, len(CAPTIONS), 3, 4, 4, generator=random)
    image = torch.nn.functional.interpolate(coarse.flatten(0, 1), (size, size), mode="bilinear", antialias=True)
    ids = torch.zeros(1, len(CAPTIONS), 77, dtype=torch.long)  # of the student's tokenizer: nothing for the teacher
    return Batch((image * 255).byte().unflatten(0, (views, -1)), ids, ("0", "1", "2"), CAPTIONS)


def direct(model: TwoTower, given: Batch) -> dict[str, torch.Tensor]:
    return model(given.image_VNCHW[:1], model.tokenizer(list(CAPTIONS))[None])


def test_it_gives_what_the_model_gives_for_the_first_view_and_the_captions(place):
    given = batch(48)
    found = Teacher(place, torch.device("cpu")).encode(given)
    expected = direct(load(place), given)
    assert found["image"].shape == (3, 1, 24)
    assert found["text"].shape == (3, 1, 24)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [32, 64])
def test_pictures_of_the_student_are_resized(place, size):
    """Smooth pictures look alike at any size: so do their features, but for those of another picture."""
    teacher = Teacher(place, torch.device("cpu"))
    there, here = (torch.nn.functional.normalize(teacher.encode(batch(s))["image"][:, 0], dim=-1) for s in (48, size))
    same = (there * here).sum(-1)
    others = (there @ here.T)[~torch.eye(3, dtype=torch.bool)]
    assert same.min() > 0.99
    assert same.min() > others.max()


def test_it_stays_as_it_is(place):
    teacher = Teacher(place, torch.device("cpu"))
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.encode(batch(48))["image"].requires_grad


def test_the_texts_of_a_sentence_model_are_tokenised_by_its_tokenizer(bert_model, tmp_path: Path):
    save_openclip_directory(build(ModelOptions(config=bert_model), seed=1), tmp_path)
    teacher = Teacher(f"local-dir:{tmp_path}", torch.device("cpu"))
    given = batch(32)
    torch.testing.assert_close(teacher.encode(given), direct(load(f"local-dir:{tmp_path}"), given))


@pytest.mark.parametrize("reference", ["runs/nowhere", "local-dir:nowhere", "ViT-B-32:nonsense"])
def test_one_that_is_not_there_is_refused_by_a_sentence(reference):
    with pytest.raises(UserError, match=r"objectives: the teacher cannot be had: [^\n]*no"):
        Teacher(reference, torch.device("cpu"))
