"""What several tests share: every objective, real processes over gloo, a tiny model, the commands of a document."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import torch.distributed as dist

from vlp import resolve
from vlp.objectives import base
from vlp.types import UserError

# One thread each: the machine's cores are shared by the ranks, and a forked child cannot use its parent's thread pool.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_COCA = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        **TINY_MODEL["vision_cfg"],
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 9,
        "output_tokens": True,
    },
    "text_cfg": {**TINY_MODEL["text_cfg"], "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 2},
}


FILLED_IN = {"teacher": "TEACHER"}  # options without a default, by the name of the field


@cache
def _entries() -> list[dict[str, Any]]:
    """Every file of vlp/objectives as entries of a recipe.

    By default, with each choice and each of the ``examples`` of a field, with any two of these together, and with one
    of each field; what does not go together is left out.
    """
    found = []
    for name in resolve.names("vlp.objectives"):
        fields = importlib.import_module(f"vlp.objectives.{name}").Objective.model_fields
        required = {field: FILLED_IN[field] for field, info in fields.items() if info.is_required() and field != "name"}
        plain = {"name": name, **required}
        base.parse(plain)
        found.append(plain)
        values = [{field: value} for field, info in fields.items() for value in _other_values(info)]
        pairs = [{**one, **other} for one, other in itertools.combinations(values, 2) if not one.keys() & other.keys()]
        for changes in [*values, *pairs]:
            with suppress(UserError):
                base.parse({**plain, **changes})
                found.append({**plain, **changes})
        together: dict[str, Any] = {}
        for value in values:
            with suppress(UserError):
                base.parse({**plain, **value, **together})
                together = {**value, **together}
        if len(together) > 2:
            found.append({**plain, **together})
    return found


def _other_values(info: Any) -> list[Any]:
    """Values of a field that are not its default."""
    if info.annotation is bool:
        return [not info.default]
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    return [*(info.examples or []), *(choice for choice in choices if choice != info.default)]


def _label(entry: dict[str, Any]) -> str:
    return "-".join(v if k == "name" else f"{k}={v}" for k, v in entry.items() if k not in FILLED_IN)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``objective_entry`` is called with every objective, with and without its options."""
    if "objective_entry" in metafunc.fixturenames:
        metafunc.parametrize("objective_entry", _entries(), ids=_label)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What evaluation keeps on disk stays out of the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLP_CACHE", str(tmp_path_factory.mktemp("vlp-cache")))
        yield


@pytest.fixture(scope="session")
def objective_entries() -> list[dict[str, Any]]:
    """All that ``objective_entry`` becomes."""
    return _entries()


def _child(function: Callable[..., Any], rank: int, world: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    try:
        store = dist.FileStore(str(folder / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        torch.save(function(rank, world, *arguments), folder / f"result-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """``run_ranks(function, world, *arguments)`` calls ``function(rank, world, *arguments)`` in forked gloo ranks.

    The ranks inherit the imported libraries, so a run takes a second or two. Returns each rank's result.
    """
    calls = 0

    def run(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        folder = tmp_path / f"ranks-{calls}"
        folder.mkdir()
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=_child, args=(function, rank, world, folder, arguments)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            if process.is_alive():
                process.kill()
                pytest.fail("a rank hung for two minutes")
        errors = sorted(folder.glob("error-*.txt"))
        assert not errors, errors[0].read_text()
        return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(world)]

    return run


@pytest.fixture
def tiny_model() -> dict[str, Any]:
    """An open_clip model_cfg of a few thousand weights beside its vocabulary."""
    return TINY_MODEL


@pytest.fixture
def tiny_coca() -> dict[str, Any]:
    """The same as a CoCa of open_clip."""
    return TINY_COCA


MARKED = re.compile(r"^<!-- (file|test): (\S+) -->\n+```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def run_document() -> Callable[..., None]:
    """``run_document(text, directory, **environment)`` does what the marked blocks of a Markdown text say, in order.

    A comment right above a fenced block marks it: ``<!-- file: PATH -->`` writes the block to ``directory/PATH``,
    ``<!-- test: quick -->`` runs it in bash and ``<!-- test: python -->`` in Python, both in ``directory`` and with the
    ``vlp`` of these tests; ``<!-- test: install -->``, a set-up that cannot run inside pytest, is left out. A block
    that fails is an AssertionError with what it printed.
    """

    def run(text: str, directory: Path, **environment: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        shells = {("quick", "bash"): ["bash", "-euo", "pipefail", "-c"], ("python", "python"): [sys.executable, "-c"]}
        directory.mkdir(parents=True, exist_ok=True)
        for kind, mark, language, content in MARKED.findall(text):
            if kind == "file":
                (directory / mark).parent.mkdir(parents=True, exist_ok=True)
                (directory / mark).write_text(content, encoding="utf-8")
            elif mark != "install":
                done = subprocess.run(
                    [*shells[mark, language], content],
                    cwd=directory,
                    env={**os.environ, "PATH": path, **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=300,
                )
                assert done.returncode == 0, f"{content}\n{done.stdout}"

    return run
