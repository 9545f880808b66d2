"""Exports: open_clip loads the same model, wherever the directory lies, and nothing that differs is left behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vlp import resolve
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import WEIGHTS_FILE, ModelOptions, build, load, save_openclip_directory
from vlp.encoders.source import CAPTIONER_FILE
from vlp.export import export
from vlp.export.card import citation
from vlp.export.formats import open_clip as module
from vlp.export.formats.base import DiffersError
from vlp.types import UserError

RECIPE = """
name: trial
seed: 7
data: {train: shards/train}
model: {init: "ViT-B-32:openai"}
objectives: [{name: infonce}, {name: siglip, weight: {start: 0.0, end: 1.0}}]
"""


@pytest.fixture
def run(tiny_model, tmp_path) -> Path:
    """A run as the trainer leaves it: a checkpoint with an average, a recipe and an evaluation."""
    run = tmp_path / "run"
    directory = run / "checkpoints" / "step-0000300"
    picture = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bilinear"}
    model = build(ModelOptions(config=tiny_model, init_logit_bias=-10.0, picture=picture), seed=0)
    save_openclip_directory(model, directory)
    average = {n: (v * 1.5 if v.is_floating_point() else v).contiguous() for n, v in model.clip.state_dict().items()}
    save_file(average, directory / "ema.safetensors")
    (directory / "state.json").write_text('{"step": 300}')
    (directory / "recipe.yaml").write_text(RECIPE)
    (run / "checkpoints" / "latest").symlink_to(directory.name)
    (run / "evaluation").mkdir()
    result = {
        "dataset": "held-out",
        "metrics": {"image_retrieval_recall@1": 0.7125, "odd": None},
        "chance": {"image_retrieval_recall@1": 0.001},
        "intervals": {"image_retrieval_recall@1": [0.65, 0.77]},
    }
    (run / "evaluation" / "held-out.json").write_text(json.dumps(result))
    return run


def test_openclip_loads_the_average_of_a_run(run, tmp_path):
    summary = export(str(run), tmp_path / "out")
    assert summary["weights"] == "ema"
    assert summary["inputs"]["pictures"]["interpolation"] == "bilinear"
    assert summary["max_abs_difference"] <= 1e-6
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    average = load_file(run / "checkpoints" / "latest" / "ema.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in clip.state_dict().items())
    assert clip.visual.preprocess_cfg["interpolation"] == "bilinear"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]


def test_model_card_tells_what_is_known_of_the_run(run, tmp_path):
    export(str(run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "open_clip"
    assert "license" not in front
    assert "| held-out | image_retrieval_recall@1 | 0.7125 | 0.6500 to 0.7700 | 0.0010 |" in card
    assert "300 steps" in card
    assert "name: trial" in card
    assert "- `infonce`, weight 1: Radford et al. 2021" in card
    assert "- `siglip`, weight on a schedule (see the recipe): Zhai et al. 2023" in card
    assert "in `shards/train`" in card
    assert "began with the weights `ViT-B-32:openai`" in card
    assert "## Licence\n\nNot stated here" in card


def test_every_objective_states_its_source():
    for name in resolve.names("vlp.objectives"):
        source = citation(name)
        assert re.search(r"(19|20)\d\d", source), f"{name}: {source}"


@pytest.mark.parametrize("fixture", ["run", "bert", "coca"])
def test_usage_in_the_card_works_after_a_move(request, fixture, tmp_path, monkeypatch):
    reference = request.getfixturevalue(fixture)
    export(str(reference), tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    card = (tmp_path / "moved" / "README.md").read_text()
    usage = card.split("```python")[1].split("```")[0]
    names: dict = {}
    Image.new("RGB", (40, 50), "red").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    exec(usage.replace("path/to/this/directory", str(tmp_path / "moved")), names)
    model = load(str(reference))
    tokens = names["tokenizer"](["a red circle", "of"])
    assert torch.equal(tokens, model.tokenizer(["a red circle", "of"]))
    theirs = names["model"].eval().encode_text(tokens, normalize=False)  # CoCa normalises where nothing is said
    assert torch.equal(theirs, model.encode_text(tokens))


@pytest.fixture
def bert(tiny_model, tmp_path) -> Path:
    """A model with a text tower of transformers whose own directory is gone."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "of"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "context_length": 12}
    model = build(ModelOptions(config={**tiny_model, "text_cfg": text}), seed=0)
    save_openclip_directory(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "bert")
    return tmp_path / "model"


@pytest.fixture
def coca(tiny_coca, tmp_path) -> Path:
    """A CoCa from scratch, whose class token sees no padding."""
    save_openclip_directory(build(ModelOptions(config=tiny_coca), seed=0), tmp_path / "coca")
    return tmp_path / "coca"


@pytest.fixture
def telling(tiny_model, tmp_path) -> Path:
    """A checkpoint with a captioning head, and an average of all its weights."""
    head = CaptionerOptions(layers=1, width=16, heads=2, queries=4)
    model = build(ModelOptions(config=tiny_model, captioner=head), seed=0)
    save_openclip_directory(model, tmp_path / "telling")
    average = {p + n: 1.5 * v for p, module in model.averaged().items() for n, v in module.state_dict().items()}
    save_file(average, tmp_path / "telling" / "ema.safetensors")
    return tmp_path / "telling"


def test_a_coca_s_captions_are_compared(coca, tmp_path, monkeypatch):
    assert export(str(coca), tmp_path / "out")["max_abs_difference"] <= 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model.text.correct_cls_mask = True" in card
    written = module.save_openclip_directory

    def spoil(model, directory, **arguments):
        written(model, directory, **arguments)
        values = load_file(Path(directory) / WEIGHTS_FILE)
        values["text_decoder.text_projection"] *= 1.01
        save_file(values, Path(directory) / WEIGHTS_FILE)

    monkeypatch.setattr(module, "save_openclip_directory", spoil)
    with pytest.raises(DiffersError, match="features as open_clip loads them differ"):
        export(str(coca), tmp_path / "spoilt")
    assert not (tmp_path / "spoilt").exists()


def test_weights_of_open_clip_keep_the_mask_that_their_card_leaves_out(coca, tmp_path):
    """As those that are published, from which nothing says that the class token sees no padding."""
    path = coca / "open_clip_config.json"
    config = {name: v for name, v in json.loads(path.read_text()).items() if name != "correct_cls_mask"}
    path.write_text(json.dumps(config))
    assert export(str(coca), tmp_path / "out")["max_abs_difference"] <= 1e-5
    assert "correct_cls_mask" not in (tmp_path / "out" / "README.md").read_text()


def test_a_head_goes_along_as_its_average(telling, tmp_path):
    summary = export(str(telling), tmp_path / "out")
    assert summary["weights"] == "ema"
    weights, average = (load_file(path) for path in (tmp_path / "out" / CAPTIONER_FILE, telling / "ema.safetensors"))
    assert all(torch.equal(value, average[f"captioner.{name}"]) for name, value in weights.items())
    count = summary["parameters"]["captioner"]
    assert f"A captioning head ({count:,} parameters)" in (tmp_path / "out" / "README.md").read_text()
    one, two = load(str(telling)), load(str(tmp_path / "out"))
    pictures, text_NL = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), one.tokenizer(["a dog", "two"])
    told = [model.caption_path().states(text_NL, model.caption_memory(pictures)) for model in (one, two)]
    assert torch.equal(*told)


@pytest.mark.parametrize("fixture", ["bert", "telling"])
def test_export_of_an_export_is_the_same_model(request, fixture, tmp_path):
    export(str(request.getfixturevalue(fixture)), tmp_path / "one")
    export(str(tmp_path / "one"), tmp_path / "two")
    if fixture == "telling":
        assert (tmp_path / "one" / CAPTIONER_FILE).read_bytes() == (tmp_path / "two" / CAPTIONER_FILE).read_bytes()
        return
    one, two = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    config = json.loads((tmp_path / "two" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == str(tmp_path / "two" / "text_tower")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _scale_weights(d), "features as open_clip loads them differ"),
        (lambda d: _edit(d, "preprocess_cfg", mean=[0.1, 0.1, 0.1]), "other pixels"),
        (lambda d: _edit(d, "model_cfg", text_cfg=None), "other token ids"),
    ],
)
def test_export_that_differs_is_removed(run, tmp_path, monkeypatch, change, message):
    written = module.save_openclip_directory

    def spoil(model, directory, **arguments):
        written(model, directory, **arguments)
        change(Path(directory))

    monkeypatch.setattr(module, "save_openclip_directory", spoil)
    with pytest.raises(DiffersError, match=message):
        export(str(run), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_others_put_into_the_directory_meanwhile_stays(run, tmp_path, monkeypatch):
    written = module.save_openclip_directory

    def meanwhile(model, directory, final):
        written(model, directory, final=final)
        (final / "theirs").write_text("kept")

    monkeypatch.setattr(module, "save_openclip_directory", meanwhile)
    with pytest.raises(UserError, match="was filled by something else meanwhile"):
        export(str(run), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]
    assert (tmp_path / "out" / "theirs").read_text() == "kept"


def test_weights_that_are_no_numbers_are_said_to_be(run, tmp_path):
    file = run / "checkpoints" / "step-0000300" / "ema.safetensors"
    save_file({n: v * float("nan") if v.is_floating_point() else v for n, v in load_file(file).items()}, file)
    with pytest.raises(UserError, match="are not finite: the weights have diverged"):
        export(str(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_has_no_scores_of_another_checkpoint(run, tmp_path):
    file = run / "evaluation" / "held-out.json"
    result = json.loads(file.read_text())
    for step, listed in ((300, True), (400, False)):
        file.write_text(json.dumps(result | {"step": step}))
        export(str(run), tmp_path / str(step))
        assert ("held-out" in (tmp_path / str(step) / "README.md").read_text()) is listed


def _scale_weights(directory: Path) -> None:
    values = load_file(directory / WEIGHTS_FILE)
    values["visual.proj"] *= 1.001
    save_file(values, directory / WEIGHTS_FILE)


def _edit(directory: Path, section: str, **values: object) -> None:
    path = directory / "open_clip_config.json"
    config = json.loads(path.read_text())
    if values.get("text_cfg", True) is None:
        config[section]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    else:
        config[section].update(values)
    path.write_text(json.dumps(config))


def test_mistakes(run, tmp_path):
    with pytest.raises(UserError, match=r"--to pickle: only .*open_clip"):
        export(str(run), tmp_path / "out", to="pickle")
    with pytest.raises(UserError, match="no model"):
        export(str(tmp_path / "nothing"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        export(str(run), tmp_path / "full")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "file").exists()
