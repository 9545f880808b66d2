"""Models of a hub: downloaded once, then taken from the cache without a word; offline, one sentence at once."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from vlp.encoders import hub as module
from vlp.encoders import source
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.types import UserError

TESTS = Path(__file__).parents[1]


def _helper(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    helper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helper)
    return helper


hub_server, models = _helper("hub_server"), _helper("transformers_models")


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, and whatever a test says of the network is forgotten."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "_unreachable", False)
    for name in (module.VARIABLE, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with hub_server.serving(tmp_path / "hub") as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def features(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        image_ND = model.encode_image(torch.arange(3 * 32 * 32).view(1, 3, 32, 32).to(torch.uint8))
        return image_ND, model.encode_text(model.tokenizer(["a red circle", "Two"]))


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(features(one), features(other), strict=True):
        assert torch.equal(a, b)


def test_an_openclip_repository(hub: Any, tiny_model: dict[str, Any], tmp_path: Path) -> None:
    save_openclip_directory(build(ModelOptions(config=tiny_model), seed=0), hub.root / "lab" / "tiny")
    first = load("hf-hub:lab/tiny")
    assert_same(first, load(str(hub.root / "lab" / "tiny")))
    hub.asked.clear()
    hub.commit = "f" * 40  # the hub has something newer
    shutil.rmtree(hub.root / "lab")
    assert_same(first, load("hf-hub:lab/tiny"))
    assert hub.asked == []
    assert source.of_reference("hf-hub:lab/tiny").described == f"hf-hub:lab/tiny@{hub_server.COMMIT}"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_transformers_repository(hub: Any, kind: str) -> None:
    directory = hub.root / "lab" / kind
    (models.write_clip if kind == "clip" else models.write_siglip)(directory)
    first = load(f"hf-hub:lab/{kind}@main")
    assert_same(first, load(str(directory)))
    hub.asked.clear()
    module.go_offline()
    assert_same(first, load(f"hf-hub:lab/{kind}@main"))
    assert source.of_reference(f"hf-hub:lab/{kind}@main").described == f"hf-hub:lab/{kind}@{hub_server.COMMIT}"
    assert hub.asked == []


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("hf-hub:nobody/nothing", r"hf-hub:nobody/nothing cannot be downloaded.*check the name"),
        ("hf-hub:lab/empty", r"hf-hub:lab/empty has no open_clip_config\.json: it is no model that"),
        ("hf-hub:lab/empty@v9", r"hf-hub:lab/empty@v9 cannot be downloaded"),
        ("hf-hub:a name/of/nothing", r"cannot be downloaded"),
    ],
)
def test_what_a_hub_lacks_is_one_sentence(hub: Any, reference: str, sentence: str) -> None:
    (hub.root / "lab" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match=sentence) as raised:
        load(reference)
    assert "\n" not in str(raised.value)


def test_offline_asks_nobody_and_says_what_is_missing_and_where(hub: Any, tmp_path: Path) -> None:
    models.write_clip(hub.root / "lab" / "clip")
    module.go_offline()
    cache = str(tmp_path / "cache")
    with pytest.raises(UserError, match=rf"--offline.*lies in {cache}.*hf download lab/clip"):
        load("hf-hub:lab/clip")
    with pytest.raises(UserError, match=rf"ViT-B-32:openai cannot be downloaded, which --offline.*{cache}"):
        load("ViT-B-32:openai")
    assert hub.asked == []
    place = hub_server.fill_cache(tmp_path / "cache", "lab/clip", hub.root / "lab" / "clip")
    (place / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors or .* of lab/clip lies in"):
        load("hf-hub:lab/clip")
    assert hub.asked == []


def test_a_prepared_cache_is_enough(tmp_path: Path) -> None:
    models.write_clip(tmp_path / "model")
    hub_server.fill_cache(tmp_path / "cache", "lab/clip", tmp_path / "model")
    module.go_offline()
    assert_same(load("hf-hub:lab/clip"), load(str(tmp_path / "model")))


def test_the_environment_forbids_downloads_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.VARIABLE, "1")
    with pytest.raises(UserError, match="VLP_OFFLINE"):
        load("hf-hub:nobody/nothing")
    assert os.environ["HF_HUB_OFFLINE"] == "1", "transformers and timm, also of child processes, read this one"


def test_a_tag_takes_safetensors_where_there_are_any(hub: Any, tiny_model: dict[str, Any], tmp_path: Path) -> None:
    repository = hub.root / "timm" / "vit_base_patch32_clip_224.openai"
    save_openclip_directory(build(ModelOptions(config=tiny_model), seed=0), repository)
    assert source.of_reference("ViT-B-32:openai").weights.name == "open_clip_model.safetensors"


def test_weights_of_a_text_tower_from_the_hub_s_cache(
    hub: Any, bert_directory: Path, tiny_model: dict[str, Any], tmp_path: Path
) -> None:
    """An open_clip repository whose text tower and tokenizer are described by another one."""
    shutil.copytree(bert_directory, hub.root / "lab" / "bert")
    text = {"hf_model_name": str(hub.root / "lab" / "bert"), "context_length": 16}
    model = build(ModelOptions(config={**tiny_model, "text_cfg": text}), seed=0)
    model.openclip_config["model_cfg"]["text_cfg"] |= {"hf_model_name": "lab/bert", "hf_tokenizer_name": "lab/bert"}
    save_openclip_directory(model, hub.root / "lab" / "tiny")
    for name in ("text_tower", *module.TOKENIZER_FILES):
        path = hub.root / "lab" / "tiny" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert_same(load("hf-hub:lab/tiny"), model.eval())
    hub.asked.clear()
    module.go_offline()
    assert_same(load("hf-hub:lab/tiny"), model)
    assert hub.asked == []


def test_an_export_with_a_text_tower_of_transformers_is_whole_on_a_hub(
    hub: Any, bert_directory: Path, tiny_model: dict[str, Any], tmp_path: Path
) -> None:
    """The machine that wrote it, and the places it knew, are gone."""
    shutil.copytree(bert_directory, tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "context_length": 16}
    save_openclip_directory(build(ModelOptions(config={**tiny_model, "text_cfg": text}), seed=0), tmp_path / "model")
    model = load(str(tmp_path / "model"))
    (hub.root / "lab").mkdir(parents=True)
    (tmp_path / "model").rename(hub.root / "lab" / "tiny")
    shutil.rmtree(tmp_path / "bert")
    assert_same(load("hf-hub:lab/tiny"), model)
    hub.asked.clear()
    module.go_offline()
    assert_same(load("hf-hub:lab/tiny"), model)
    assert hub.asked == []
