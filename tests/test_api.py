"""The names of the package: what the README and docs/api.md promise, on a real small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlp
from data_tools.scenes import ScenesOptions, write_scenes
from vlp import api
from vlp.data.transforms import eval_transform
from vlp.encoders.openclip import build, save_openclip_directory
from vlp.encoders.options import ModelOptions
from vlp.evaluation.run import find_task
from vlp.types import UserError

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TEXTS = ["a red circle", "a blue square", "two stars"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("api")
    save_openclip_directory(build(ModelOptions(config=TINY), seed=0), place / "model")
    config = TINY | {"init_logit_bias": -10.0}
    save_openclip_directory(build(ModelOptions(config=config), seed=0), place / "sigmoid")
    write_scenes(ScenesOptions(out=place / "data", num_train=8, num_eval=12))
    return place


@pytest.fixture(scope="module")
def model(place: Path) -> vlp.Model:
    return vlp.load(place / "model")


def drawn(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_pictures_are_embedded_alike_however_they_are_given(model: vlp.Model, tmp_path: Path) -> None:
    for number in range(3):
        drawn(number).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    of_paths = model.embed_images(paths, batch_size=2)
    assert of_paths.shape == (3, model.width)
    torch.testing.assert_close(of_paths.norm(dim=1), torch.ones(3))
    for given in ([drawn(n) for n in range(3)], [str(p) for p in paths], [p.read_bytes() for p in paths]):
        torch.testing.assert_close(model.embed_images(given), of_paths)
    transform = eval_transform(model.towers.picture_format)
    with torch.no_grad():
        first = model.towers.encode_image(transform(drawn(0))[None])
    torch.testing.assert_close(of_paths[:1], torch.nn.functional.normalize(first))


def test_transparent_grey_and_palette_pictures_are_taken(model: vlp.Model) -> None:
    assert model.embed_images([drawn(0, mode) for mode in ("RGBA", "L", "P", "CMYK", "I;16")]).isfinite().all()


def test_nothing_gives_no_rows(model: vlp.Model) -> None:
    assert model.embed_images([]).shape == (0, 16)
    assert model.embed_texts([]).shape == (0, 16)


def test_probabilities_follow_the_kind_of_model(model: vlp.Model, place: Path) -> None:
    image_ND, text_MD = model.embed_images([drawn(0), drawn(1)]), model.embed_texts(TEXTS)
    cosines = model.similarity(image_ND, text_MD)
    scale = model.towers.logit_scale.exp()
    torch.testing.assert_close(model.probabilities(image_ND, text_MD), (scale * cosines).softmax(dim=1))
    sigmoid = vlp.load(place / "sigmoid")
    expected = torch.sigmoid(scale * sigmoid.similarity(image_ND, text_MD) - 10)
    torch.testing.assert_close(sigmoid.probabilities(image_ND, text_MD), expected)


def test_a_picture_that_cannot_be_read_is_named(model: vlp.Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png is no picture"):
        model.embed_images([drawn(0), tmp_path / "broken.png"])
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        model.embed_images([tmp_path / "missing.png"])


def test_functions_get_the_figures_of_the_model_they_call(model: vlp.Model, place: Path) -> None:
    """Through pictures and strings, so that all that evaluation does besides is the same."""
    sets = [place / "data" / "eval" / name for name in ("retrieval", "colour", "swaps")]
    mine = vlp.Functions(
        lambda pictures: 3 * model.embed_images(pictures).numpy(), lambda texts: model.embed_texts(texts).tolist()
    )
    assert [one.scores.metrics for one in vlp.evaluate(mine, sets, batch_size=5)] == [
        one.scores.metrics for one in vlp.evaluate(model, sets)
    ]


def test_each_picture_and_text_is_asked_for_once(place: Path) -> None:
    seen: list[str] = []

    def texts(batch: list[str]) -> np.ndarray:
        seen.extend(batch)
        return np.random.default_rng(0).normal(size=(len(batch), 4))

    task = find_task(place / "data" / "eval" / "retrieval")
    numbers: list[int] = []

    def images(batch: list[Image.Image]) -> np.ndarray:
        numbers.append(len(batch))
        return np.random.default_rng(1).normal(size=(len(batch), 4))

    vlp.evaluate(vlp.Functions(images, texts), [task.directory])
    assert sorted(seen) == sorted(set(task.texts))
    assert sum(numbers) == len(task.images)


def test_features_of_a_wrong_shape_are_refused(place: Path) -> None:
    wrong = vlp.Functions(lambda pictures: np.zeros(3), lambda texts: np.zeros((len(texts), 3)))
    with pytest.raises(UserError, match=r"shape \(3,\): it must be"):
        vlp.evaluate(wrong, [place / "data" / "eval" / "retrieval"])


def test_the_package_has_few_names_and_imports_nothing_heavy() -> None:
    assert sorted(vlp.__all__) == ["Functions", "Model", "Result", "evaluate", "load"]
    assert set(vlp.__all__) <= set(api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vlp.nothing  # noqa: B018
    script = "import sys, vlp; assert 'torch' not in sys.modules; vlp.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
