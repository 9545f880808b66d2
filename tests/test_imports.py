"""Imports point one way: down the rows of docs/design.md."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [
    ["vlp", "vlp.types"],
    ["vlp.resolve", "vlp.options", "vlp.flags", "vlp.distributed", "vlp.sharded", "vlp.draws", "vlp.durations"],
    ["vlp.shapes"],
    ["vlp.signals", "vlp.watchdog", "vlp.rendezvous"],
    ["vlp.data"],
    ["vlp.encoders"],
    ["vlp.generation", "vlp.generation_options", "vlp.captioning"],
    ["vlp.features", "vlp.ema"],
    ["vlp.embeddings", "vlp.momentum"],
    ["vlp.similarity"],
    ["vlp.objectives"],
    ["vlp.encoding"],
    ["vlp.optim", "vlp.health", "vlp.spikes", "vlp.flops"],
    ["vlp.track"],
    ["vlp.checkpoint"],
    ["vlp.evaluation"],
    ["vlp.recipe"],
    ["vlp.engines", "vlp.console", "vlp.run_directory"],
    ["vlp.run_state"],
    ["vlp.trainer"],
    ["vlp.evaluation.report", "vlp.doctor", "vlp.export", "vlp.inspection", "vlp.bench", "vlp.search"],
    ["vlp.merge", "vlp.merge_sweep"],
    ["vlp.quickstart", "vlp.api"],
    ["vlp.commands"],
    ["vlp.cli", "vlp.__main__"],
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def row_of(module: str) -> int | None:
    """Row of the longest listed prefix of ``module``; None outside vlp."""
    parts = module.split(".")
    if parts[0] != "vlp":
        return None
    for length in range(len(parts), 1, -1):
        if (name := ".".join(parts[:length])) in ROW_OF:
            return ROW_OF[name]
    return ROW_OF["vlp"] if module == "vlp" else None


def imports(source: str) -> list[str]:
    """Every vlp or data_tools module that a source text imports, `from vlp import x` as vlp.x."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] in ("vlp", "data_tools")]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def upward(path: Path) -> list[str]:
    own = row_of(module_name(path))
    assert own is not None, f"{module_name(path)} stands in no row of docs/design.md"
    rows = [(name, row_of(name)) for name in imports(path.read_text())]
    return [f"{module_name(path)} imports {name}" for name, row in rows if row is not None and row > own]


def test_no_module_imports_upward():
    """But for the package itself, which lends its name to `vlp.api`, and imports it when somebody asks."""
    paths = sorted({*(ROOT / "vlp").rglob("*.py")} - {ROOT / "vlp" / "__init__.py"})
    assert [line for path in paths for line in upward(path)] == []


def test_data_tools_stay_below_the_trainer():
    """But for the pages of sheets, which share their look with the report."""
    limit = ROW_OF["vlp.generation"]
    kinds = [f"vlp.evaluation.report.{path.stem}" for path in (ROOT / "vlp/evaluation/report").glob("*_sheet.py")]
    page = {*kinds, *(f"{kind}.write_page" for kind in kinds)}
    assert "vlp.evaluation.report.data_sheet.write_page" in page
    for path in sorted((ROOT / "data_tools").rglob("*.py")):
        rows = [(name, row_of(name)) for name in imports(path.read_text()) if name not in page]
        assert [name for name, row in rows if row is not None and row > limit] == [], path


def test_the_check_sees_a_backward_import(tmp_path):
    assert row_of("vlp.data.batches") < row_of("vlp.trainer")
    assert "vlp.trainer" in imports("def f():\n    from vlp import trainer\n")


def test_objectives_know_no_rank_loader_or_model():
    forbidden = ("vlp.distributed", "vlp.data", "vlp.encoders", "vlp.embeddings", "torch.distributed")
    for path in (ROOT / "vlp" / "objectives").glob("*.py"):
        text = path.read_text()
        assert not any(name in imports(text) for name in forbidden), path
        assert "torch.distributed" not in text, path


def test_there_is_no_utils():
    assert not list(ROOT.glob("vlp/**/utils.py")) + list(ROOT.glob("data_tools/**/utils.py"))
