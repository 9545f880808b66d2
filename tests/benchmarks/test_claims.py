"""benchmarks/claims: intervals and verdicts, the claims' files, the runner with real processes, what is published."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlp import recipe
from vlp.types import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks" / "claims"
CLAIMS = sorted(path.stem for path in FOLDER.glob("c[0-9][0-9]_*.py"))
Modules = dict[str, ModuleType]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Modules]:
    """The modules, which find each other beside them as when they run; forgotten afterwards: others have such names."""
    names = [path.stem for path in FOLDER.glob("*.py") if path.stem != "patch_probe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)


# ---- Intervals and verdicts


def test_interval_of_five_seeds_is_that_of_the_t_table(scripts: Modules) -> None:
    found = scripts["intervals"].spread([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(0.975, 4) = 2.7764 in any table; half width 2.7764 * sqrt(2.5 / 5) = 1.9632
    assert (found["num"], found["mean"]) == (5, 3.0)
    assert found["low"] == pytest.approx(3 - 1.9632, abs=5e-4)
    assert found["high"] == pytest.approx(3 + 1.9632, abs=5e-4)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (4, 2.7764), (9, 2.2622), (10, 2.2281), (19, 2.0930)])
def test_quantiles_stand_at_their_degrees_of_freedom(scripts: Modules, degrees: int, quantile: float) -> None:
    assert scripts["intervals"].T_QUANTILES[degrees - 1] == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize(
    ("low", "high", "expected", "margin", "verdict"),
    [
        (0.1, 0.3, "up", 0, "shown"),
        (-0.1, 0.3, "up", 0, "not shown"),
        (-0.3, -0.1, "up", 0, "contradicted"),
        (-0.3, -0.1, "down", 0, "shown"),
        (0.1, 0.3, "down", 0, "contradicted"),
        (-0.005, 0.008, "same", 0.01, "shown"),
        (-0.005, 0.02, "same", 0.01, "not shown"),
        (0.02, 0.03, "same", 0.01, "contradicted"),
        (-0.03, -0.02, "same", 0.01, "contradicted"),
        (-0.005, 0.5, "not lower", 0.01, "shown"),
        (-0.02, 0.5, "not lower", 0.01, "not shown"),
        (-0.05, -0.02, "not lower", 0.01, "contradicted"),
        (-0.5, 0.005, "not higher", 0.01, "shown"),
        (0.02, 0.5, "not higher", 0.01, "contradicted"),
    ],
)
def test_verdict(scripts: Modules, low: float, high: float, expected: str, margin: float, verdict: str) -> None:
    found = {"num": 5, "mean": (low + high) / 2, "low": low, "high": high}
    assert scripts["intervals"].verdict(found, expected, margin) == verdict
    assert scripts["intervals"].verdict({**found, "num": 4}, expected, margin) == "not shown"


def test_claim_is_decided_by_its_decisive_findings(scripts: Modules) -> None:
    def together(*verdicts: str, beside: str = "contradicted", guard: str = "") -> str:
        findings = [{"verdict": verdict, "decisive": True, "expected": "up"} for verdict in verdicts]
        others = [{"verdict": beside, "decisive": False, "expected": "up"}]
        if guard:
            others.append({"verdict": guard, "decisive": True, "expected": "not lower (± 0.01)"})
        return str(scripts["intervals"].together([*findings, *others]))

    assert together("shown", "shown") == "shown"
    assert together("shown", "not shown") == "shown in part"
    assert together("shown", "not shown", "contradicted") == "shown in part"
    assert together("not shown", "not shown", beside="shown") == "not shown"
    assert together("not shown", "contradicted", beside="shown") == "contradicted"
    assert together("contradicted", guard="shown") == "contradicted"
    assert together("shown", guard="contradicted") == "shown in part"
    assert together("shown", guard="shown") == "shown"


# ---- Findings


def _runs(scripts: Modules, **arms: Sequence[float]) -> dict[str, dict[int, Any]]:
    run = scripts["claim"].Run
    return {
        arm: {seed: run(1.0, {"val/x": value}, {1: 3.0, 2: value}) for seed, value in enumerate(values)}
        for arm, values in arms.items()
    }


def test_contrast_is_paired_by_seed(scripts: Modules) -> None:
    contrast = scripts["claim"].Contrast("b - a", "val/x", {"b": 1, "a": -1}, "up")
    # The arms overlap by far; only the pairs show the difference.
    found = contrast.assess(_runs(scripts, a=[0, 10, 20, 30, 40], b=[1.1, 10.9, 21, 31, 41, 99]))
    assert list(found["values"]) == [0, 1, 2, 3, 4]
    assert found["mean"] == pytest.approx(1.0)
    assert found["verdict"] == "shown"


def test_contrast_of_absent_arms_and_figures_shows_nothing(scripts: Modules) -> None:
    contrast = scripts["claim"].Contrast("b - a", "val/y", {"b": 1, "a": -1}, "up")
    assert contrast.assess({})["verdict"] == "not shown"
    assert contrast.assess(_runs(scripts, a=[1], b=[2]))["values"] == {}
    of_x = scripts["claim"].Contrast("b - a", "val/x", {"b": 1, "a": -1}, "up")
    assert of_x.assess(_runs(scripts, a=[1, 2, 3, 4, 5], b=[2, 3, 4, 5, math.nan]))["verdict"] == "not shown"


def test_same_losses_are_compared_step_by_step(scripts: Modules) -> None:
    finding = scripts["claim"].SameLosses("equal", ("a", "b"), bound=1e-4)
    equal = finding.assess(_runs(scripts, a=[1, 2, 3, 4, 5], b=[1.00005, 2, 3, 4, 5]))
    assert equal["verdict"] == "shown"
    assert equal["values"][0] == pytest.approx(5e-5)
    assert finding.assess(_runs(scripts, a=[1], b=[1]))["verdict"] == "not shown"
    assert finding.assess(_runs(scripts, a=[1, 2], b=[1, 2.001]))["verdict"] == "contradicted"


def test_losses_that_are_no_numbers_or_absent_are_not_the_same(scripts: Modules) -> None:
    finding = scripts["claim"].SameLosses("equal", ("a", "b"), bound=1e-4)
    # The second of the two logged losses: max() alone would pass over it.
    diverged = finding.assess(_runs(scripts, a=[1, 2, 3, 4, 5], b=[1, 2, math.nan, 4, 5]))
    assert diverged["verdict"] == "contradicted"
    assert math.isnan(diverged["values"][2])
    silent = {arm: {0: scripts["claim"].Run(1.0, {}, {})} for arm in "ab"}
    with pytest.raises(UserError, match="equal: the arms of seed 0 logged no loss"):
        finding.assess(silent)


# ---- The files of the claims


@pytest.mark.parametrize("stem", CLAIMS)
def test_every_arm_is_a_recipe_with_an_evaluation(scripts: Modules, stem: str, tmp_path: Path) -> None:
    claim = scripts[stem].CLAIM
    assert stem.startswith(f"c{int(claim.name[1:]):02}_")
    assert claim.promise.endswith(".")
    assert any(finding.decisive for finding in claim.findings)
    for job in scripts["runs"].jobs_of(tmp_path, stem, claim, [3]):
        found = recipe.load(str(claim.recipe_file), job.overrides)
        assert found.seed == 3
        assert found.train.steps
        wanted = {*claim.sets, *claim.arms[job.arm].sets}
        assert {Path(path).name for path in found.evaluate.sets} == {name.rpartition(":")[2] for name in wanted}


@pytest.mark.parametrize("stem", CLAIMS)
def test_arms_of_a_claim_differ_and_are_all_compared(scripts: Modules, stem: str) -> None:
    claim = scripts[stem].CLAIM
    assert len({(arm.overrides, arm.data, arm.processes) for arm in claim.arms.values()}) == len(claim.arms)
    # The places of what is trained, too.
    folders = {job.run_dir for job in scripts["runs"].jobs_of(Path("w"), stem, claim, [0, 1])}
    assert len(folders) == 2 * len(claim.arms)
    compared = {arm for finding in claim.findings for arm in finding.arms()}
    assert compared == set(claim.arms)


@pytest.mark.parametrize(
    ("stem", "decisive", "retrieval"),
    [("c05_triple", "image_knn_accuracy", "not lower"), ("c06_contrastive_gap", "modality_gap", "same")],
)
def test_retrieval_decides_where_the_promise_names_it(
    scripts: Modules, stem: str, decisive: str, retrieval: str
) -> None:
    found = {(f.figure.split("/")[-1], f.expected) for f in scripts[stem].CLAIM.findings if f.decisive}
    assert found >= {("image_to_text_R@1", retrieval), ("text_to_image_R@1", retrieval)}
    assert decisive in {figure for figure, _ in found}


def test_slope_over_temperatures_is_that_of_least_squares(scripts: Modules) -> None:
    temperature = scripts["c17_temperature"]
    values = np.array([0.3, 0.1, 0.4, 0.1, 0.5])
    weights = temperature.slope(temperature.TEMPERATURES)
    slope = sum(weight * value for weight, value in zip(weights.values(), values, strict=True))
    expected = np.polyfit([math.log(t) for t in temperature.TEMPERATURES], values, 1)[0]
    assert slope == pytest.approx(expected)


def test_a_higher_loss_is_one_on_the_mean_of_its_steps(scripts: Modules) -> None:
    run = scripts["claim"].Run
    finding = scripts["c03_laclip"].HigherLoss("loss", "more", "less")

    def runs(losses: Sequence[Sequence[float]]) -> dict[int, Any]:
        return {seed: run(1.0, {}, dict(enumerate(each))) for seed, each in enumerate(losses)}

    less = runs([[2, 1]] * 5)
    found = finding.assess({"more": runs([[2, 1.2], [2.1, 1.2], [2, 1.3], [2, 1.2], [1.9, 1.6]]), "less": less})
    assert found["values"] == pytest.approx({0: 0.1, 1: 0.15, 2: 0.15, 3: 0.1, 4: 0.25})
    assert found["verdict"] == "shown"
    assert finding.assess({"more": runs([[1, 1]] * 5), "less": less})["verdict"] == "contradicted"
    assert finding.assess({"more": {}, "less": less})["verdict"] == "not shown"


def test_a_finding_about_an_unknown_arm_is_refused(scripts: Modules) -> None:
    claim = scripts["c01_process_equality"].CLAIM
    finding = scripts["claim"].SameLosses("equal", ("one process", "three processes"), bound=1e-4)
    with pytest.raises(UserError, match="unknown arm 'three processes'"):
        scripts["claim"].Claim(**{**vars(claim), "findings": [finding]})


def test_claims_are_chosen_by_name_number_or_file(scripts: Modules) -> None:
    select, claims = scripts["claim"].select, scripts["claim"].load_all()
    assert list(claims) == CLAIMS
    assert list(select(claims, [])) == CLAIMS
    for word in ("C6", "c06", "c06_contrastive_gap"):
        assert list(select(claims, [word])) == ["c06_contrastive_gap"]
    assert list(select(claims, ["C5"])) == ["c05_triple", "c05_triple_local"]
    with pytest.raises(UserError, match="no claim 'C99'"):
        select(claims, ["C99"])


# ---- The runner


def _claim(scripts: Modules, folder: Path, **changes: Any) -> Any:
    """A claim of two arms of two steps each."""
    module = scripts["claim"]
    tiny = folder / "tiny.yaml"
    tiny.write_text(
        f"base: {FOLDER / 'recipes' / 'scenes.yaml'}\n"
        "train: {steps: 2, global_batch_size: 8, warmup: 1}\ncheckpoint: {every: 1}\ntrack: {every: 1}\n"
        "model: {config: {embed_dim: 8, vision_cfg: {image_size: 16, layers: 1, width: 8, head_width: 8, patch_size: 8,"
        " timm_model_name: null, timm_pool: null, timm_proj: null}, text_cfg: {width: 8, heads: 1, layers: 1}}}\n"
    )
    values = {
        "name": "C99",
        "title": "a title",
        "promise": "A promise.",
        "paper": "nobody, never",
        "shrunk": "all of it.",
        "recipe": str(tiny),
        "data": {"plain": ("--num-train", "24", "--num-eval", "6", "--image-size", "16")},
        "sets": ("retrieval",),
        "arms": {"one": module.Arm(), "other": module.Arm(("train.lr=1e-2",))},
        "findings": [
            module.Contrast("other - one", "val/retrieval/image_to_text_R@1", {"other": 1, "one": -1}, "up"),
            module.SameLosses("losses", ("one", "other"), bound=1e-4),
        ],
    }
    return module.Claim(**{**values, **changes})


def _commands(job: Any, monkeypatch: pytest.MonkeyPatch, *commands: list[str]) -> None:
    monkeypatch.setattr(type(job), "commands", lambda self: list(map(list, commands)))


def test_train_probe_collect_and_publish(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it, once, as a user does; then nothing is left to do, and a failing arm does not stop the others."""
    run = scripts["run"]
    output, work = tmp_path / "out", tmp_path / "work"
    output.mkdir()
    (output / "README.md").write_text(f"before\n{scripts['page'].START}\n{scripts['page'].END}\nafter\n")
    module = scripts["claim"]
    arms = {"one": module.Arm(), "other": module.Arm(("data.train=nowhere",))}
    claims = {"c99_tiny": _claim(scripts, tmp_path, arms=arms)}
    monkeypatch.setattr(run, "load_all", lambda: claims)
    arguments = ["run.py", "--seeds", "1", "--jobs", "2", "--work", str(work), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run.main() == 1
    said = capsys.readouterr().err
    assert "C99 other, seed 0: FAILED" in said
    assert "nowhere" in said  # vlp's own sentence, from the end of the log
    assert "2/2" in said

    record = json.loads((output / "results" / "c99_tiny.json").read_text())
    assert record["verdict"] == "not shown"
    assert [finding["failed"] for finding in record["findings"]] == [["other, seed 0"]] * 2
    (only,) = record["runs"]
    assert (only["arm"], only["seed"], list(only["losses"])) == ("one", 0, ["1", "2"])
    assert only["figures"].keys() >= {"val/retrieval/image_to_text_R@1", "train/loss"}
    assert only["seconds"] > 0
    assert only["versions"].keys() >= {"vlp", "torch", "python"}
    assert only["commit"] == scripts["runs"].commit()
    assert str(tmp_path) not in json.dumps(record).replace(str(tmp_path / "tiny.yaml"), "")
    page = (output / "README.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "not shown (failed: other, seed 0) |" in page
    assert "| [C99](#c99-a-title) | a title | **not shown** | 0 of 2 shown | 1 |" in page
    assert (output / "plots" / "c99_tiny.png").stat().st_size > 5000
    one = work / "runs" / "c99_tiny" / "one" / "seed-0"
    assert not (one / "checkpoints").exists()

    before = (one / "metrics.jsonl").stat().st_mtime_ns
    alone = [module.Contrast("one", "val/retrieval/image_to_text_R@1", {"one": 1}, "up")]
    claims["c99_tiny"] = _claim(scripts, tmp_path, arms={"one": module.Arm()}, findings=alone)
    assert run.main() == 0
    assert (one / "metrics.jsonl").stat().st_mtime_ns == before
    claims["c99_tiny"] = _claim(scripts, tmp_path, arms={"one": module.Arm(("train.lr=5e-1",))}, findings=alone)
    assert run.main() == 2
    assert "another recipe (different: train.lr)" in capsys.readouterr().err
    data = {**claims["c99_tiny"].data, "more": ("--num-train", "25", "--num-eval", "6", "--image-size", "16")}
    arms = {"one": module.Arm(data="more")}
    claims["c99_tiny"] = _claim(scripts, tmp_path, data=data, arms=arms, findings=alone)
    assert run.main() == 2
    assert "another recipe (different: data.train, evaluate.sets.0)" in capsys.readouterr().err


def test_a_claim_without_its_data_is_left_out_and_named(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawings come from elsewhere: the recipe names them, and the other claims go on without them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "c03_laclip_emoji", "--seeds", "1", "--output", str(tmp_path / "out")])
    assert scripts["run"].main() == 1
    assert "C3 LaCLIP on drawings: left out, as there is no data/emoji/train here: " in capsys.readouterr().err
    for folder in ("train", "eval/unseen_drawings", "eval/unseen_things"):
        (tmp_path / "data" / "emoji" / folder).mkdir(parents=True)
    (tmp_path / "data" / "stamps").mkdir()
    (job, *_) = scripts["runs"].jobs_of(tmp_path, "c03", scripts["c03_laclip_emoji"].CLAIM, [0])
    assert job.missing_data() == "data/emoji/eval/unseen_drawings_other_words"
    for name in job.claim.sets:
        (tmp_path / "data" / "emoji" / "eval" / name).mkdir(exist_ok=True)
    assert job.missing_data() is None


def test_findings_about_an_arm_that_failed_once_are_not_shown(scripts: Modules, tmp_path: Path) -> None:
    """Five seeds that went well are not enough where the sixth diverged: the next try forgets it."""
    module, runs = scripts["claim"], scripts["runs"]
    up = module.Contrast("up", "val/x", {"b": 1, "a": -1}, "up")
    findings = [up, module.Contrast("a alone", "val/x", {"a": 1}, "up")]
    claim = _claim(scripts, tmp_path, arms={"a": module.Arm(), "b": module.Arm()}, findings=findings)
    found = _runs(scripts, a=[1, 2, 3, 4, 5, 6], b=[2, 3.1, 4, 5, 6])
    notes = {arm: {seed: {"seconds": 1.0} for seed in by_seed} for arm, by_seed in found.items()}
    record = scripts["page"].record
    assert record(claim, found, notes, {})["verdict"] == "shown"
    of_b, of_a = record(claim, found, notes, {"b": [5]})["findings"]
    assert (of_b["verdict"], of_b["failed"], of_a["verdict"]) == ("not shown", ["b, seed 5"], "shown")
    assert "not shown (failed: b, seed 5)" in scripts["page"].verdict(of_b)

    (job, _) = runs.jobs_of(tmp_path, "c99_tiny", claim, [5])
    job.run_dir.mkdir(parents=True)
    job.fail("diverged")
    assert job.failed()
    active = runs._Active.start(job, 1)
    active.stop()
    active.process.wait()
    assert not job.failed()


def test_jobs_run_side_by_side_and_one_of_two_processes_alone(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, module = scripts["runs"], scripts["claim"]
    arms = {"a": module.Arm(), "b": module.Arm(), "pair": module.Arm(processes=2)}
    jobs = runs.jobs_of(tmp_path, "c99_tiny", _claim(scripts, tmp_path, arms=arms, findings=[]), [0])
    # Each waits for its neighbour, but for the pair, which waits for nobody and must find nobody.
    meet = f"""
import pathlib, sys, time
arm, here = sys.argv[1], pathlib.Path({str(tmp_path)!r})
(here / arm).touch()
other = here / {{"a": "b", "b": "a", "pair": "pair"}}[arm]
until = time.monotonic() + 20
while not other.exists():
    assert time.monotonic() < until
    time.sleep(0.01)
time.sleep(0.3)
(here / arm).rename(here / (arm + "-ended"))
if arm == "pair":
    assert (here / "a-ended").exists() and (here / "b-ended").exists()
"""
    monkeypatch.setattr(runs.Job, "commands", lambda self: [[sys.executable, "-c", meet, self.arm]])
    problems = {}
    runs.train(jobs, 2, 1, lambda job, seconds, problem: problems.update({job.arm: problem}))
    assert problems == {"a": "", "b": "", "pair": ""}


def test_threads_are_given_and_the_probe_follows_the_training(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = scripts["runs"]
    (job, _) = runs.jobs_of(tmp_path, "c99_tiny", _claim(scripts, tmp_path), [0])
    say = [sys.executable, "-c", "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[1])"]
    _commands(job, monkeypatch, [*say, "first"], [*say, "second"])
    runs.train([job], 1, 3, lambda *_: None)
    assert job.log.read_text() == "3 first\n3 second\n"
    _commands(job, monkeypatch, [sys.executable, "-c", "raise SystemExit('no')"], [*say, "second"])
    told: list[str] = []
    runs.train([job], 1, 1, lambda job, seconds, problem: told.append(problem))
    assert "exit code 1" in told[0]
    assert "    no" in told[0]
    assert job.log.read_text() == "no\n"


def test_layers_of_a_claim_are_written_beside_its_data(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first run; the rewrites of the layer are those that its options ask for."""
    module, run, runs = scripts["claim"], scripts["run"], scripts["runs"]
    layers = {"other_words": (*module.REWRITES, "--grammar", "B"), "same_words": (*module.REWRITES, "--grammar", "A")}
    arms = {"one": module.Arm(("data.captions=[{source: txt}, {source: layer.other_words, weight: 5}]",))}
    claim = _claim(scripts, tmp_path, arms=arms, findings=[], layers=layers)
    (job,) = runs.jobs_of(tmp_path, "c99_tiny", claim, [0])
    _commands(job, monkeypatch, [sys.executable, "-c", "pass"])
    arguments = argparse.Namespace(work=tmp_path, threads=1, jobs=1)
    assert run.train({"c99_tiny": [job]}, arguments) == 0
    found = {}
    for name in layers:
        table = pq.read_table(job.data / "train" / "layers" / name / "00000.parquet")
        found[name] = {words[0] for texts in table["rewrites"].to_pylist() for words in map(str.split, texts)}
        assert {len(texts) for texts in table["rewrites"].to_pylist()} == {5}
    assert found["same_words"] <= {"a", "there"}
    assert found["other_words"] <= {"here", "to", "on", "over", "under", "beneath"}


def test_two_processes_are_launched_by_torchrun(scripts: Modules, tmp_path: Path) -> None:
    claim = scripts["c01_process_equality"].CLAIM
    alone, pair = (shlex.join(job.commands()[0]) for job in scripts["runs"].jobs_of(tmp_path, "c01", claim, [0]))
    assert "-m vlp train" in alone
    assert "torch.distributed" not in alone
    assert "-m torch.distributed.run --standalone --nproc_per_node 2 -m vlp train" in pair


def test_interruption_lets_the_runs_save(tmp_path: Path) -> None:
    """SIGTERM to the runner: each run gets one, and the runner waits until it has gone."""
    script = f"""
import sys, signal
sys.path.insert(0, {str(FOLDER)!r})
import run, runs
saves = '''
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
'''
runs.Job.commands = lambda self: [[sys.executable, "-c", saves, str(self.run_dir)]]
runs.draw = lambda *_: None
sys.argv = ["run.py", "C1", "--seeds", "1", "--jobs", "1", "--work", {str(tmp_path)!r}, "--output", {str(tmp_path)!r}]
sys.exit(run.main())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    run_dir = tmp_path / "runs" / "c01_process_equality" / "one-process" / "seed-0"
    until = time.monotonic() + 60
    while not (run_dir / "ready").exists():
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert (run_dir / "saved").exists()
    assert not (run_dir / "done.json").exists()


# ---- The probe of patches


@pytest.fixture(scope="module")
def patch_probe() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("patch_probe")
        sys.modules.pop("patch_probe", None)


def test_patches_are_labelled_by_what_lies_in_their_middle(patch_probe: ModuleType) -> None:
    empty, unclear = patch_probe.EMPTY, patch_probe.UNCLEAR
    thing = {"x": 4.0, "y": 4.0, "diameter": 6.0, "colour": "blue"}
    found = patch_probe.objects_at_patches([{**thing, "x": 20.0}, thing], image_size=24, grid=3)
    # Patches of 8 px: the middles of two are in objects, those of their neighbours 5 px from an edge.
    assert found.tolist() == [1, unclear, 0, unclear, empty, unclear, empty, empty, empty]
    assert {patch_probe.choose(found, number) for number in range(1, 40, 2)} == {0, 2}
    assert found[patch_probe.choose(found, 2)] == empty
    assert patch_probe.choose(np.full(9, empty), 1) is None


# ---- What is published


def test_text_replaces_the_one_between_the_marks(scripts: Modules) -> None:
    page = scripts["page"]
    text = f"before\n{page.START}\nold\n{page.END}\nafter\n"
    once = page.with_results(text, "new")
    assert once == f"before\n{page.START}\n\nnew\n\n{page.END}\nafter\n"
    assert page.with_results(once, "new") == once
    with pytest.raises(UserError, match="marks"):
        page.with_results("no marks", "new")


def test_page_shows_the_recorded_results(scripts: Modules) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "results").glob("*.json"))
    }
    if records:
        assert scripts["page"].with_results(text, scripts["page"].markdown(records)) == text
    else:
        assert scripts["page"].START in text
    for stem in records:
        assert (FOLDER / "plots" / f"{stem}.png").is_file()
