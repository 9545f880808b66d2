"""vlp export --to onnx: two towers that onnxruntime alone runs as the model does, at any batch size."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vlp
from data_tools.scenes import ScenesOptions, write_scenes
from vlp.data.transforms import PictureFormat, eval_transform
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.export import export
from vlp.export.formats import onnx as module
from vlp.export.formats.base import DiffersError
from vlp.export.onnx_example import Encoder
from vlp.types import UserError

_helper = Path(__file__).parents[1] / "transformers_models.py"
_spec = importlib.util.spec_from_file_location("transformers_models", _helper)
assert _spec is not None
assert _spec.loader is not None
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)


CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def save(directory: Path, seed: int = 0) -> Path:
    model = build(ModelOptions(config=CONFIG, init_logit_bias=-10.0), seed=seed)
    models.shaken(model.clip, seed)
    save_openclip_directory(model, directory)
    return directory


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its export; to trace the towers takes seconds."""
    root = tmp_path_factory.mktemp("onnx")
    summary = export(str(save(root / "model")), root / "out", to="onnx")
    assert summary["max_abs_difference"] <= 1e-5
    return root / "model", root / "out"


def test_a_clip(exported: tuple[Path, Path], tmp_path: Path) -> None:
    saved = exported[0]
    shutil.copytree(exported[1], tmp_path / "out")
    told = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert told["pictures"]["size"] == [32, 32]
    assert told["texts"]["length"] == 16
    assert told["logit_bias"] == -10
    model = load(str(saved))
    assert told["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    for name, kind, shape in (("image", onnx.TensorProto.UINT8, [3, 32, 32]), ("text", onnx.TensorProto.INT64, [16])):
        graph = onnx.load(str(tmp_path / "out" / f"{name}.onnx"))
        assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [module.OPSET]
        (given,) = graph.graph.input
        assert given.type.tensor_type.elem_type == kind
        batch, *rest = given.type.tensor_type.shape.dim
        assert batch.dim_param, "any number of rows"
        assert [side.dim_value for side in rest] == shape

    shutil.move(tmp_path / "out", tmp_path / "moved")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)).save(
        tmp_path / "picture.jpg"
    )
    card = (tmp_path / "moved" / "README.md").read_text()
    usage = card.split("```python")[1].split("```")[0].replace("path/to/this/directory", str(tmp_path / "moved"))
    without_torch = "\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    keep = "import numpy\nnumpy.savez('features.npz', image=image_features, text=text_features)\n"
    subprocess.run([sys.executable, "-c", usage + without_torch + keep], cwd=tmp_path, check=True, timeout=120)
    found = np.load(tmp_path / "features.npz")
    image_ND = model.encode_image(model.eval_transform(Image.open(tmp_path / "picture.jpg"))[None])
    text_ND = model.encode_text(model.tokenizer(["a red circle", "two cats"]))
    torch.testing.assert_close(torch.tensor(found["image"]), F.normalize(image_ND, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found["text"]), F.normalize(text_ND, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["siglip", "coca"])
def test_other_models(kind: str, tiny_coca: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's tokenizer has no fast form; a CoCa normalises where nothing is said, and one tower of it is large."""
    monkeypatch.setattr(module, "EXTERNAL_ABOVE", 1 << 20)
    if kind == "siglip":
        models.write_siglip(tmp_path / "model")
    else:
        save_openclip_directory(build(ModelOptions(config=tiny_coca), seed=0), tmp_path / "model")
    assert export(str(tmp_path / "model"), tmp_path / "out", to="onnx")["max_abs_difference"] <= 1e-5
    beside = {path.name for path in (tmp_path / "out").glob("*.data")}
    assert beside == ({"text.onnx.data"} if kind == "coca" else set())


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_open_clip_s_to_the_last(mode: Any, size: tuple[int, int], interpolation: Any) -> None:
    ours = eval_transform(PictureFormat(size, (0.5,) * 3, (0.5,) * 3, interpolation, mode, fill_color=7))
    encoder = Encoder.__new__(Encoder)
    encoder.told = {
        "pictures": {"size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": 7},
    }
    generator = np.random.default_rng(0)
    for shape in ((97, 61), (40, 200), (32, 32), (31, 79), (33, 34), (300, 299), (5, 90)):
        picture = Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
        assert np.array_equal(encoder.pixels(picture), ours(picture).numpy()), shape


def _edit(directory: Path, section: str, **changes: Any) -> None:
    path = directory / "preprocess.json"
    told = json.loads(path.read_text())
    told[section] |= changes
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: _edit(d, "pictures", interpolation="bilinear"), "other pixels"),
        (lambda d: _edit(d, "texts", cleaning="canonicalize"), "other token ids"),
        (lambda d: None, "features by onnxruntime differ"),
    ],
)
def test_what_differs_is_seen(exported: tuple[Path, Path], spoil: Any, message: str, tmp_path: Path) -> None:
    shutil.copytree(exported[1], tmp_path / "out")
    spoil(tmp_path / "out")
    other = exported[0] if "other" in message else save(tmp_path / "model", seed=1)
    with pytest.raises(DiffersError, match=message):
        module.compare(load(str(other)), tmp_path / "out")


def test_what_it_cannot_carry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**CONFIG["text_cfg"], "tokenizer_kwargs": {"clean": "whitespace"}}
    with pytest.raises(UserError, match="keep their case"):
        module.check(build(ModelOptions(config={**CONFIG, "text_cfg": text}), seed=0))
    models.write_siglip(tmp_path / "model")
    model: Any = load(str(tmp_path / "model"))
    model.tokenizer.strip_sep_token = True
    with pytest.raises(UserError, match="strip_sep_token"):
        module.check(model)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'vlp\[onnx\]'"):
        module.check(model)


def test_its_recall_is_the_model_s(exported: tuple[Path, Path], tmp_path: Path) -> None:
    write_scenes(ScenesOptions(out=tmp_path / "data", num_train=16, num_eval=24))
    encoder = Encoder(exported[1])
    sets = [tmp_path / "data" / "eval" / "retrieval"]
    (one,) = vlp.evaluate(vlp.Functions(encoder.image_features, encoder.text_features), sets)
    (other,) = vlp.evaluate(vlp.load(exported[0], "cpu"), sets)
    assert one.scores.metrics == pytest.approx(other.scores.metrics, abs=1 / 24 + 1e-9)


def test_no_pictures_are_no_rows(exported: tuple[Path, Path]) -> None:
    encoder = Encoder(exported[1])
    assert encoder.image_features([]).shape == encoder.text_features([]).shape == (0, CONFIG["embed_dim"])
