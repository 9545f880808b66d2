"""Fixtures that several tests share: real processes over gloo, a tiny model, the commands of a document."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

# One thread each: the machine's cores are shared by the ranks, and a forked child cannot use its parent's thread pool.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


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
