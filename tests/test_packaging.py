"""What an installed vlp consists of: recipes, templates and data tools, and it works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlp import resolve

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as `pip install .` lays it out."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site-packages")
    return place / "site-packages"


def tracked(pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern) if "__pycache__" not in path.parts}


def test_wheel_holds_all_that_runs_and_nothing_else(installed: Path) -> None:
    packed = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    code = tracked("vlp/**/*.*") | tracked("data_tools/**/*.*")
    assert "vlp/evaluation/report/report.html.j2" in code
    assert {name for name in packed if not name.startswith("vlp-")} == code | {
        f"vlp/{recipe}" for recipe in tracked("recipes/**/*.*")
    }
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_wheel_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import vlp, data_tools; print(vlp.__file__, data_tools.__file__); from vlp.cli import main; main(['recipes'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where, *recipes = done.stdout.splitlines()
    assert where == f"{installed / 'vlp/__init__.py'} {installed / 'data_tools/__init__.py'}"
    assert {line.split()[0] for line in recipes} == set(resolve.recipes())
