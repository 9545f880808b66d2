"""The command line as people use it: quick help, one sentence for a mistake, what each command prints and writes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import __version__, cli, resolve

TOOLS = resolve.names("data_tools")
COMMANDS = {
    "bench": ["-h", "NAME", "recipe", "key=value", "--json"],
    "caption": [
        *("-h", "model", "--offline", "IMAGE|DIR|SHARDS", "--json", "--batch-size", "--beams", "--max-length"),
        *(
            "--min-length",
            "--length-penalty",
            "--top-p",
            "--temperature",
            "--seed",
            "--repetition-penalty",
            "--no-repeat-ngram",
        ),
        *("--prompt", "--name", "--root", "--samples", "--report", "--workers", "--ray", "--part", "--gpus"),
    ],
    "data": ["-h", "TOOL"],
    "doctor": ["-h", "run", "--json"],
    "embed": [
        *("-h", "model", "--offline", "INPUT", "--output", "--files", "--dtype", "--texts", "--caption", "--column"),
        *("--batch-size", "--workers", "--ray", "--part", "--gpus"),
    ],
    "eval": [
        *(
            "-h",
            "model",
            "--offline",
            "--on",
            "--suite",
            "--root",
            "--output",
            "--output-dir",
            "--batch-size",
            "--scorer",
            "--beams",
        ),
        *("--templates", "--classnames", "--probe", "--knn", "--cache", "--languages"),
    ],
    "export": ["-h", "model", "--offline", "directory", "--to"],
    "inspect": ["-h", "recipe", "key=value"],
    "merge": [*("-h", "OUT", "MODEL", "--base", "--method", "--alpha", "--weights", "--gamma", "--on")],
    "objectives": ["-h", "NAME"],
    "quickstart": ["-h", "--dir"],
    "recipes": ["-h"],
    "report": ["-h", "run", "OTHER", "--output"],
    "search": [
        *("-h", "EMBEDDINGS", "QUERY", "--image", "--plus", "--minus", "--towards", "--away-from", "--weight"),
        *("--find", "--top", "--model", "--offline", "--json", "--html", "--serve", "--port", "--host"),
    ],
    "train": ["-h", "recipe", "key=value"],
}


def vlp(*arguments: object) -> None:
    cli.main([str(argument) for argument in arguments])


def in_a_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "vlp", *arguments]
    return subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the scenes and a run of the quickstart's smoke profile; the tests work in it."""
    home = tmp_path_factory.mktemp("home")
    write_scenes(ScenesOptions(out=home / "data" / "smoke", num_train=64, num_eval=16))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        (home / "file").touch()
        vlp("train", "quickstart", "profile=smoke", "run_dir=run", "train.steps=2", "evaluate.every=null")
        yield home


# ---- Help


def options_by_command() -> dict[str, list[str]]:
    """What each command takes: the first spelling of an option, the name of an argument."""

    def taken(parser: argparse.ArgumentParser) -> list[str]:
        return [a.option_strings[0] if a.option_strings else str(a.metavar or a.dest) for a in parser._actions]

    def command(name: str) -> argparse.ArgumentParser:
        (commands,) = cli._parser([name])._subparsers._group_actions  # type: ignore[union-attr]
        assert isinstance(commands.choices, dict)
        return commands.choices[name]

    return {name: taken(command(name)) for name in [*resolve.names(cli.COMMANDS), "data"]}


def test_training_has_no_flags_and_no_command_grows_one_unnoticed() -> None:
    """What decides a run stands in its recipe, where it is recorded and compared: a flag would escape that."""
    assert options_by_command() == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"data {tool}" for tool in TOOLS)])
def test_help_is_quick(command: str) -> None:
    code = f"""
import sys, time
from vlp.cli import main
try:
    main({[*command.split(), "--help"]!r})
except SystemExit as exit:
    assert exit.code == 0
heavy = {{"torch", "open_clip", "transformers", "numpy", "pyarrow"}} & sys.modules.keys()
assert not heavy, heavy
assert time.process_time() < 1, time.process_time()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: vlp {command}".rstrip())


def test_help_lists_every_command_and_tool(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, names in ((["--help"], list(COMMANDS)), (["data", "--help"], TOOLS)):
        with pytest.raises(SystemExit):
            vlp(*arguments)
        assert set(names) <= set(capsys.readouterr().out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        vlp("--version")
    assert capsys.readouterr().out == f"vlp {__version__}\n"


# ---- Mistakes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train quickstrat", "did you mean 'quickstart'"),
        ("train quickstart train.stesp=3", "did you mean 'steps'"),
        ("train quickstart profile=smoke steps", "write key=value"),
        ("train quickstart profile=smoke data.train=nowhere", "nowhere does not exist"),
        ("inspect quickstart profile=smoke objectives.0.name=infonse", "did you mean 'infonce'"),
        ("inspect quickstart profile=smoke evaluate.sets=[nowhere]", "evaluation set nowhere does not exist"),
        ("eval run --on nowhere", "evaluation set nowhere does not exist"),
        ("eval run --on data", "has no known layout"),
        ("eval nowhere --on data/smoke/eval/retrieval", "no model 'nowhere'"),
        ("eval run --on data/smoke/eval/retrieval --batch-size 0", "--batch-size"),
        ("eval run --on data/smoke/eval/retrieval --output data", "name a file"),
        ("eval run --on data/smoke/eval/retrieval --output file/x.json", "file: File exists: check the path"),
        ("train quickstart profile=smoke run_dir=file", "file: File exists: check the path"),
        ("train quickstart profile=smoke run_dir=file/x", "file/x: Not a directory: check the path"),
        ("quickstart --dir file", "Not a directory: check the path"),
        ("export run file/x", "file/x: Not a directory: check the path"),
        ("report run --output file/x.html", "file: File exists: check the path"),
        ("data scenes file/x --num-train 4", "file/x: Not a directory: check the path"),
        ("inspect quickstart profile=smoke train.micro_batch_size=8", "batch norms"),
        ("report nowhere", "no run nowhere"),
        ("export nowhere out", "no model 'nowhere'"),
        ("export run data", "not empty"),
        ("data scenes out --num-train 0", "--num-train 0 is too small"),
        ("data scenes data/smoke", "not empty"),
        ("eval run --on captioning:data/smoke/eval/captions", "the model tells no captions"),
        ("eval run --on data/smoke/eval/retrieval --beams 2", "captioning"),
        ("eval run --on captioning:data/smoke/eval/captions --beams 0", "--beams: "),
        (
            "train quickstart profile=smoke run_dir=refused evaluate.sets=[captioning:data/smoke/eval/captions]",
            "the model tells no captions",
        ),
        ("data scenes out --hold-out pink", "unknown word 'pink'"),
        ("data emoji out --vendor apple", "--vendor apple is refused"),
        ("data stamps nowhere out", "nowhere holds no .png or .svg"),
        ("data pack nowhere out", "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(home: Path, capsys, arguments: str, sentence: str) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        vlp(*arguments.split())
    assert ended.value.code == 2
    last_line = capsys.readouterr().err.rstrip("\n")
    assert last_line.startswith("vlp: ")
    assert sentence in last_line
    assert "\n" not in last_line
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    "arguments", ["", "tarin quickstart", "train", "train --lr 3 quickstart", "data", "data scene x"]
)
def test_a_command_line_that_cannot_be_read_shows_the_usage(capsys, arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        vlp(*arguments.split())
    assert ended.value.code == 2
    usage, *_, complaint = capsys.readouterr().err.strip().splitlines()
    assert usage.startswith("usage: vlp")
    assert complaint.startswith("vlp")


def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    done = in_a_process("train", "nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vlp: no recipe 'nothing.yaml'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["recipes"], ["objectives"], ["--help"]])
def test_a_reader_that_closes_early_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = in_a_process(*arguments, stdout=writer)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


# ---- What the commands print and write


def test_recipes_and_objectives_are_listed_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    for command, known in (("recipes", {"quickstart", "emoji"}), ("objectives", {"infonce", "siglip"})):
        vlp(command)
        printed = capsys.readouterr().out.splitlines()
        lines = [line.split(maxsplit=1) for line in printed]
        assert known <= {name for name, *_ in lines}
        assert all(len(rest) == 1 and len(rest[0]) > 20 for _, *rest in lines), lines
        assert len({line.index(f" {summary}") for line, (_, summary) in zip(printed, lines, strict=True)}) == 1


def test_inspect_says_what_would_run_and_runs_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlp("inspect", "quickstart", "profile=smoke", "run_dir=never")
    facts = dict(line.split(maxsplit=1) for line in reversed(capsys.readouterr().out.splitlines()))
    assert facts["data"].startswith("64 samples in 1 shards")
    assert facts["columns"] == "json, png, txt"
    assert facts["length"] == "4 steps = 128 samples = 2.00 epochs"
    assert facts["objectives"] == "1 x infonce"
    assert not (home / "never").exists()


def test_results_of_one_set_are_an_object_and_of_several_a_list_or_files(home: Path, tmp_path: Path, capsys) -> None:
    one, two = ("data/smoke/eval/retrieval", "data/smoke/eval/colour")
    vlp("eval", "run", "--on", one, "--output", tmp_path / "one.json")
    assert "image_retrieval_recall@1" in capsys.readouterr().out
    single = json.loads((tmp_path / "one.json").read_text())
    assert single["dataset"] == "retrieval"
    assert single["model"] == "run"

    vlp("eval", "run", "--on", one, two, "--output", tmp_path / "both.json")
    assert [result["dataset"] for result in json.loads((tmp_path / "both.json").read_text())] == ["retrieval", "colour"]

    vlp("eval", "run", "--on", one, two, "--output", tmp_path / "results" / "{dataset}.json", "--batch-size", 5)
    files = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()}
    assert files.keys() == {"retrieval", "colour"}
    assert files["retrieval"]["metrics"] == single["metrics"]
    during_training = json.loads((home / "run" / "evaluation" / "retrieval.json").read_text())
    assert during_training["metrics"] == single["metrics"]


def test_report_prints_where_it_lies(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, place in (((), Path("run/report.html")), (("--output", tmp_path / "x.html"), tmp_path / "x.html")):
        vlp("report", "run", *arguments)
        assert capsys.readouterr().out == f"{place}\n"
        assert place.read_text().startswith("<!doctype html>")


def test_report_takes_others_beside_the_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlp("eval", "run", "--on", "data/smoke/eval/swaps", "--output", tmp_path / "other.json")
    vlp("report", "run", tmp_path / "other.json", "--output", tmp_path / "x.html")
    assert "other: </span>" in (tmp_path / "x.html").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        vlp("report", tmp_path / "other.json", "run")
    assert "name first the run" in capsys.readouterr().err


def test_export_prints_its_parity_and_is_a_model_again(home: Path, tmp_path: Path, capsys) -> None:
    vlp("export", "run", tmp_path / "out", "--to", "open_clip")
    summary = json.loads(capsys.readouterr().out)
    assert summary["directory"] == str(tmp_path / "out")
    assert summary["max_abs_difference"] <= 1e-5
    vlp("eval", tmp_path / "out", "--on", "data/smoke/eval/retrieval", "--output", tmp_path / "result.json")
    ours = json.loads((home / "run" / "evaluation" / "retrieval.json").read_text())
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == ours["metrics"]


def test_every_training_run_says_how_to_go_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlp("train", "quickstart", "profile=smoke", "run_dir=run", "train.steps=2", "evaluate.every=null")
    printed = capsys.readouterr()
    assert "going on from step 2" in printed.err
    assert "vlp report run" in printed.out + printed.err


def test_an_objective_prints_its_contract_and_an_unknown_one_is_named(capsys):
    cli.main(["objectives", "uniformity"])
    said = capsys.readouterr().out
    assert "log 1/(B(B-1)) sum_{i != j} exp(-t ||z_i - z_j||^2)" in said
    assert "  t: " in said
    with pytest.raises(SystemExit) as ended:
        cli.main(["objectives", "uniformty"])
    assert ended.value.code == 2
    assert "did you mean 'uniformity'?" in capsys.readouterr().err
