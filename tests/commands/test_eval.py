"""``vlp eval`` with several models, suites and a directory of results; what is there is not computed again."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp import distributed
from vlp.cli import main
from vlp.data.write import CaptionPair, encode_image, write_classification_set, write_pairs, write_retrieval_set
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions

Show = pytest.CaptureFixture[str]
WORDS = ["red", "green", "blue", "black", "white", "pink"]


def vlp(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(coarse).resize((36, 34)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of random weights, ``one`` and ``two``, and a root with a few sets of datacomp38."""
    home = tmp_path_factory.mktemp("home")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    for seed, name in enumerate(["one", "two"]):
        openclip.save_openclip_directory(openclip.build(ModelOptions(config=config), seed), home / name)
    root = home / "sets"
    write_retrieval_set(
        root / "wds_flickr30k_test", [(picture(i), "png", [f"{w} shape", f"a {w} thing"]) for i, w in enumerate(WORDS)]
    )
    for name in ("wds_imagenet-a_test", "wds_imagenetv2"):
        items = [(picture(10 + i), "png", i % 6) for i in range(12)]
        write_classification_set(root / name, items, WORDS, ["a {c} thing", "{c}"])
    pairs = [CaptionPair(picture(i), "png", f"{w} on top", f"top on {w}") for i, w in enumerate(WORDS)]
    write_pairs(root / "pairs", {"swap": pairs})
    return home


@pytest.fixture
def there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the models and sets, in which the test stands."""
    for name in ("one", "two", "sets"):
        shutil.copytree(home / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(directory: Path) -> dict[tuple[str, str], dict]:
    found = [json.loads(path.read_text()) for path in directory.glob("*.json")]
    return {(result["model"], result["dataset"]): result for result in found}


def test_several_models_are_evaluated_on_every_set(there: Path, capsys: Show) -> None:
    vlp("eval", "one", "two/", "--on", "sets/wds_flickr30k_test", "sets/pairs", "--output", "all.json")
    said = capsys.readouterr()
    stored = json.loads((there / "all.json").read_text())
    assert [(r["model"], r["dataset"]) for r in stored] == [
        *(("one", "wds_flickr30k_test"), ("one", "pairs")),
        *(("two", "wds_flickr30k_test"), ("two", "pairs")),
    ]
    assert stored[0]["preprocess"]["size"] == [32, 32]
    assert stored[0]["preprocess"]["interpolation"] == "bicubic"
    assert stored[0]["texts"]["length"] == 16
    assert stored[0]["weights"] == "model"
    assert "one: pictures: 32 x 32 pixels, its shorter side resized, the centre cropped (bicubic)" in said.err
    assert "4 of 4: two on pairs: 6 pictures, 12 texts" in said.err
    assert "│ one" not in said.out
    assert "one ┃" in said.out

    vlp("eval", "two", "--on", "sets/pairs", "--output", "alone.json")
    alone = json.loads((there / "alone.json").read_text())
    assert {**alone, "set": ""} == {**stored[3], "set": ""}


def test_one_file_a_model_and_a_set(there: Path) -> None:
    (there / "models.txt").write_text("one\n# a remark\n\ntwo\n")
    vlp("eval", "models.txt", "--on", "sets/pairs", "--output", "out/{model}-{dataset}.json")
    assert {path.name for path in (there / "out").iterdir()} == {"one-pairs.json", "two-pairs.json"}


def test_a_directory_of_results_goes_on_where_it_was_stopped(there: Path, capsys: Show) -> None:
    command = (
        "eval",
        "one",
        "two",
        "--on",
        "sets/wds_flickr30k_test",
        "sets/wds_imagenet-a_test",
        "--output-dir",
        "out",
    )
    vlp(*command)
    first = results(there / "out")
    names = {path.name for path in (there / "out").glob("*.json")}
    assert "wds_imagenet-a_test_model_one_en_zeroshot_classification.json" in names
    capsys.readouterr()

    times = {path: path.stat().st_mtime_ns for path in (there / "out").glob("*.json")}
    gone = there / "out" / "wds_flickr30k_test_model_two_en_zeroshot_retrieval.json"
    gone.unlink()
    vlp(*command)
    said = capsys.readouterr().err
    assert said.count("is there") == 3
    assert "two: pictures: " in said
    assert "one: pictures" not in said
    assert results(there / "out") == first
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {gone}


def test_what_has_changed_is_computed_anew_and_said(there: Path, capsys: Show) -> None:
    command = ["eval", "one", "--on", "sets/wds_imagenet-a_test", "--output-dir", "out", "--no-cache"]
    vlp(*command)
    capsys.readouterr()
    weights = there / "one" / "open_clip_model.safetensors"
    shutil.copy(there / "two" / "open_clip_model.safetensors", weights)
    vlp(*command)
    assert "en_zeroshot_classification.json is made anew: other model" in capsys.readouterr().err
    vlp(*command, "--templates", "openai-simple")
    assert "made anew: other options" in capsys.readouterr().err
    names = there / "sets" / "wds_imagenet-a_test" / "classnames.txt"
    names.write_text("\n".join(reversed(WORDS)))
    vlp(*command, "--templates", "openai-simple")
    assert "made anew: other set" in capsys.readouterr().err
    (stored,) = (there / "out").glob("*.json")
    stored.write_text("{")
    vlp(*command, "--templates", "openai-simple")
    assert "made anew: its file is damaged" in capsys.readouterr().err
    vlp(*command, "--templates", "openai-simple")
    assert "made anew" not in capsys.readouterr().err


def test_a_suite_runs_what_is_there_and_lists_what_is_missing(there: Path, capsys: Show) -> None:
    vlp("eval", "one", "two", "--suite", "datacomp38", "--root", "sets", "--output-dir", "out")
    said = capsys.readouterr()
    assert "datacomp38: 3 of 40 sets are there, without" in said.err
    assert "ImageNet 1k: looked for wds_imagenet1k_test, wds_imagenet1k, imagenet1k; get it from https://" in said.err
    assert "FairFace: not computed, DataComp has no main metric" in said.err
    assert "wds_imagenet-a_test has 12 pictures, not 7,500 and 6 classes, not 200 as the ImageNet-A" in said.err
    stored = results(there / "out")
    assert stored["one", "wds_imagenetv2"]["suites"] == ["datacomp38"]
    lines = {line.split("│")[1].strip(): line.split("│")[2:4] for line in said.out.splitlines() if line.count("│") == 4}
    shifts = [
        stored[m, d]["metrics"]["acc1"] for m in ("one", "two") for d in ("wds_imagenet-a_test", "wds_imagenetv2")
    ]
    expected = [f"{50 * (shifts[0] + shifts[1]):.1f}", f"{50 * (shifts[2] + shifts[3]):.1f}"]
    assert [cell.strip() for cell in lines["ImageNet dist. shifts (2 of 6)"]] == expected
    assert lines["ImageNet (0 of 1)"][0].strip() == "–"
    assert "mean of what is there (3 of 38)" in lines
    assert not any(line.startswith("Average") for line in lines)

    vlp("eval", "one", "two", "--suite", "imagenet-shifts", "--root", "sets", "--output-dir", "out")
    assert "pictures: " not in capsys.readouterr().err
    assert results(there / "out")["one", "wds_imagenetv2"]["suites"] == ["datacomp38", "imagenet-shifts"]


def test_a_set_of_a_suite_may_be_a_link(there: Path, capsys: Show) -> None:
    (there / "root").mkdir()
    for name in ("wds_imagenetv2_test", "imagenet-r"):
        (there / "root" / name).symlink_to(there / "sets" / "wds_imagenetv2")
    vlp("eval", "one", "--suite", "imagenet-shifts", "--root", "root", "--output-dir", "out")
    assert "ImageNet dist. shifts (2 of 6)" in capsys.readouterr().out
    assert results(there / "out").keys() == {("one", "wds_imagenetv2_test"), ("one", "imagenet-r")}


def test_tables_are_written_beside_the_results(there: Path) -> None:
    vlp("eval", "one", "two", "--on", "sets/pairs", "sets/wds_imagenetv2", "--output-dir", "out")
    with open(there / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    value = next(r for r in rows if (r["model"], r["dataset"], r["metric"]) == ("two", "pairs", "text_acc"))
    assert float(value["value"]) == results(there / "out")["two", "pairs"]["metrics"]["text_acc"]
    assert float(value["low"]) <= float(value["value"]) <= float(value["high"])
    markdown = (there / "out" / "results.md").read_text()
    assert "| set | metric | one | two | chance |" in markdown


def test_clip_benchmark_builds_its_table_of_the_results(there: Path) -> None:
    cli = pytest.importorskip("clip_benchmark.cli")
    vlp("eval", "one", "two", "--on", "sets/pairs", "sets/wds_flickr30k_test", "--output-dir", "out")
    files = sorted(str(path) for path in (there / "out").glob("*.json"))
    cli.main_build(argparse.Namespace(files=files, output="their.csv"))
    with open(there / "their.csv", newline="") as file:
        rows = {(row["dataset"], row["model_fullname"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {(d, f"{m} model") for d in ("pairs", "wds_flickr30k_test") for m in ("one", "two")}
    ours = results(there / "out")["two", "wds_flickr30k_test"]["metrics"]["image_retrieval_recall@5"]
    assert float(rows["wds_flickr30k_test", "two model"]["image_retrieval_recall@5"]) == ours


def test_results_in_another_language_are_found_again(there: Path, capsys: Show) -> None:
    """A file of one language as CLIP_benchmark makes it of Crossmodal-3600."""
    folder = there / "xm3600"
    (folder / "images").mkdir(parents=True)
    keys = [f"{number:016x}" for number in range(6)]
    for number, key in enumerate(keys):
        (folder / "images" / f"{key}.jpg").write_bytes(picture(number))
    paths = [f"images/{key}.jpg" for key in keys]
    content = {"image_paths": paths, "annotations": [f"ein {word} Ding" for word in WORDS], "indicies": [*range(6)]}
    (folder / "crossmodal3600_captions-de.json").write_text(json.dumps(content))
    for _ in range(2):
        vlp("eval", "one", "--on", "xm3600", "--output-dir", "out")
    assert "is there" in capsys.readouterr().err
    (stored,) = (there / "out").glob("*.json")
    assert stored.name == "xm3600_model_one_de_zeroshot_retrieval.json"
    assert json.loads(stored.read_text())["language"] == "de"

    german = folder / "crossmodal3600_captions-de.json"
    german.write_text(german.read_text().replace("Ding", "Dingsbums"))
    german.rename(folder / "crossmodal3600_captions-fr.json")
    vlp("eval", "one", "--on", "xm3600", "--output-dir", "out")
    page, table = (there / "out" / "report.html").read_text(), (there / "out" / "results.md").read_text()
    for language in ("de", "fr"):
        assert f"<b>xm3600 ({language})</b>" in page
        assert f"| xm3600 ({language}) | text_retrieval_recall@1 |" in table
    assert ",rsum," in (there / "out" / "results.csv").read_text()


def eval_on_rank(rank: int, world: int, arguments: list[str]) -> tuple[str, str]:
    distributed.leave = lambda: None  # in this fork: `run_ranks` ends the group
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), suppress(SystemExit):
        vlp(*arguments)
    return out.getvalue(), err.getvalue()


def test_processes_share_the_work_and_one_of_them_speaks(there: Path, run_ranks: Callable[..., list]) -> None:
    sets = [f"sets/{name}" for name in ("wds_flickr30k_test", "wds_imagenet-a_test", "pairs")]
    arguments = ["eval", "one", "two", "--on", *sets, "--batch-size", "3", "--no-cache", "--output-dir"]
    vlp(*arguments, "alone")
    (said, errors), silent = run_ranks(eval_on_rank, 2, [*arguments, "together"])
    assert "report.html" in said
    assert "6 of 6: two on pairs" in errors
    assert silent == ("", "")
    alone, together = results(there / "alone"), results(there / "together")
    assert alone.keys() == together.keys()
    for key, result in alone.items():
        for field in ("metrics", "intervals", "tie_rate", "made_from"):
            assert together[key].get(field) == result.get(field), (key, field)

    (_, errors), silent = run_ranks(eval_on_rank, 2, ["eval", "one", "--on", "sets/nowhere"])
    assert errors == "vlp: evaluation set sets/nowhere does not exist: check the path\n"
    assert silent == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("one --suite datacomp38", "--suite and --root belong together"),
        ("one --on sets/pairs --root sets", "--suite and --root belong together"),
        ("one --suite datacmp38 --root sets", "did you mean 'datacomp38'"),
        ("one --suite compositional --root sets", "has none of the 7 sets of compositional: it looks for"),
        ("one --suite compositional --root nowhere", "--root nowhere is no directory"),
        ("one one --on sets/pairs", "model one is named twice"),
        ("one ./one/ one/ --on sets/pairs", "named twice"),
        ("one nothing --on sets/pairs", "no model 'nothing'"),
        ("one --on sets/pairs --probe", "no evaluation set has classes"),
        ("one --on sets/pairs --output-dir one/open_clip_config.json", "is a file: name a directory"),
        ("one --on sets/pairs --output-dir empty.txt/x", "empty.txt/x: Not a directory"),
        ("empty.txt --on sets/pairs", "empty.txt names no model"),
        ("bytes.txt --on sets/pairs", "bytes.txt is no text in UTF-8"),
    ],
)
def test_mistakes_are_one_sentence(there: Path, capsys: Show, arguments: str, sentence: str) -> None:
    (there / "empty.txt").write_text("\n")
    (there / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit, match="2"):
        vlp("eval", *arguments.split())
    said = capsys.readouterr()
    assert sentence in said.err
    assert "pictures: " not in said.err  # before any model is loaded
    assert said.out == ""


def test_names_are_no_markup(there: Path, capsys: Show) -> None:
    shutil.copytree(there / "sets" / "pairs", there / "sets" / "[bold]a")
    shutil.copytree(there / "one", there / "[red]one")
    vlp("eval", "[red]one", "--on", "sets/[bold]a")
    vlp("eval", "[red]one", "two", "--on", "sets/[bold]a")
    said = capsys.readouterr().out
    assert said.count("│ [bold]a") == 2
    assert "[red]one" in said


def test_figures_that_are_no_shares_keep_their_digits(there: Path, capsys: Show) -> None:
    vlp("eval", "one", "--on", "sets/wds_flickr30k_test", "--output", "one.json")
    rsum = json.loads((there / "one.json").read_text())["figures"]["rsum"]
    assert rsum > 100
    assert f"{rsum:.1f}" in capsys.readouterr().out


def test_models_of_like_names_keep_results_of_their_own(there: Path, capsys: Show) -> None:
    (there / "a").mkdir()
    shutil.move(there / "one", there / "a" / "b")
    shutil.move(there / "two", there / "a_b")
    long = "x" * 120
    (there / long).mkdir()
    shutil.copytree(there / "a_b", there / long / long)
    models = ("a/b", "a_b", f"{long}/{long}")
    for _ in range(2):
        vlp("eval", *models, "--on", "sets/pairs", "--output-dir", "out")
    assert capsys.readouterr().err.count("is there") == 3
    found = results(there / "out")
    assert found.keys() == {(model, "pairs") for model in models}
    assert found["a/b", "pairs"]["metrics"] != found["a_b", "pairs"]["metrics"]
    assert (there / "out" / "results.csv").read_text().count("a_b,model,en,text_acc,") == 1


def test_a_model_that_cannot_be_loaded_leaves_the_others_their_results(there: Path, capsys: Show) -> None:
    shutil.copytree(there / "one", there / "bad")
    weights = there / "bad" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SystemExit, match="2"):
        vlp("eval", "one", "bad", "two", "--on", "sets/pairs", "--output-dir", "out")
    said = capsys.readouterr()
    assert "vlp: 1 of 3 models could not be evaluated: " in said.err
    assert "bad is left out" in said.err
    assert "one ┃ two ┃" in " ".join(said.out.split())
    assert results(there / "out").keys() == {("one", "pairs"), ("two", "pairs")}
    assert "| one | two | chance |" in (there / "out" / "results.md").read_text()


@pytest.mark.parametrize(
    "content", ['{"metrics": 3}', '{"metrics": {"text_acc": "much"}}', '{"intervals": {"text_acc": 3}}']
)
def test_a_result_whose_fields_are_something_else_is_damaged(there: Path, capsys: Show, content: str) -> None:
    command = ("eval", "one", "--on", "sets/pairs", "--output-dir", "out")
    vlp(*command)
    (path,) = (there / "out").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(content)))
    with pytest.raises(SystemExit, match="2"):
        vlp("report", "out")
    capsys.readouterr()
    vlp(*command)
    assert "is made anew: its file is damaged" in capsys.readouterr().err


def test_damaged_answers_are_said_and_the_page_is_written_without(there: Path, capsys: Show) -> None:
    vlp("eval", "one", "two", "--on", "sets/pairs", "--output-dir", "out")
    (path,) = (there / "out").glob("pairs_model_two*.npz")
    path.write_bytes(path.read_bytes()[:100])
    vlp("report", "out")
    assert f"{path.name} is damaged" in capsys.readouterr().err
    path.write_bytes(b"")
    vlp("report", "out")


def test_the_page_compares_only_what_was_asked_alike(there: Path) -> None:
    vlp("eval", "one", "--on", "sets/wds_imagenetv2", "--output-dir", "out")
    (there / "names.txt").write_text("\n".join(f"{word} names" for word in WORDS))
    vlp("eval", "two", "--on", "sets/wds_imagenetv2", "--output-dir", "out", "--classnames", "names.txt")
    page = (there / "out" / "report.html").read_text()
    assert "not of the same options" in page
    assert "No set has the answers of two models" in page

    vlp("eval", "one", "--on", "sets/wds_imagenetv2", "--output-dir", "out", "--classnames", "names.txt")
    page = (there / "out" / "report.html").read_text()
    assert "not of the same options" not in page
    assert " names</span>" in page  # the gallery calls classes what they were called

    (there / "sets" / "wds_imagenetv2" / "classnames.txt").write_text("\n".join(reversed(WORDS)))
    vlp("report", "out")
    assert "has changed since it was evaluated" in (there / "out" / "report.html").read_text()


def test_whether_class_embeddings_are_kept_changes_no_result(there: Path, capsys: Show) -> None:
    vlp("eval", "one", "--on", "sets/wds_imagenetv2", "--output-dir", "out", "--no-cache")
    vlp("eval", "one", "--on", "sets/wds_imagenetv2", "--output-dir", "out")
    assert "is there" in capsys.readouterr().err


def test_commands_may_share_a_directory(there: Path) -> None:
    """What one has begun to write is not taken away by another that writes the same."""
    run = [sys.executable, "-m", "vlp", "eval", "one", "--on", "sets/pairs", "--output-dir", "out"]
    started = [subprocess.Popen(run, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert results(there / "out").keys() == {("one", "pairs")}
    assert not list((there / "out").glob("*.partial"))
