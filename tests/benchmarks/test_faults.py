"""benchmarks/faults: the soak in short, one fault of each kind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults" / "soak.py"
_spec = importlib.util.spec_from_file_location("soak", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
soak = importlib.util.module_from_spec(_spec)
sys.modules["soak"] = soak  # where its dataclasses look for their annotations
_spec.loader.exec_module(soak)


@pytest.mark.slow
def test_a_run_survives_each_kind_of_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = soak.soak(tmp_path, list(soak.KINDS), seed=4)
    assert figures["faults"] == {"kill": 1, "term": 1, "stop": 1}
    assert figures["frozen process noticed and named"] == 1
    assert figures["equal to the bit"]
    assert "Attempt(fault='stop'" in capsys.readouterr().err


def test_the_soak_sees_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that starts anew each time is told from one that goes on."""
    monkeypatch.setattr(soak, "newest_whole", lambda run_dir: 2)
    with pytest.raises(AssertionError, match="went on from"):
        soak.soak(tmp_path, ["term"], seed=0)


def test_faults_are_shared_out() -> None:
    chosen = soak.some(90, seed=0)
    assert {kind: chosen.count(kind) for kind in soak.KINDS} == {"kill": 60, "term": 20, "stop": 10}
    assert chosen == soak.some(90, seed=0) != soak.some(90, seed=1)
