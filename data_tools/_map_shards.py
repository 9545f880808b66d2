"""The same function over many shards: in this process, in several, or as tasks of a Ray cluster."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from data_tools._console import track
from vlp.types import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Means:
    """What works on shards: ``workers`` processes or Ray tasks; ``gpus`` is what Ray gives a task of a model."""

    workers: int | None = None
    ray: str | None = None
    gpus: float | None = None


_AHEAD = 4  # shards handed out for each worker, so that one slow shard does not leave the others idle
_SECONDS_BETWEEN_LINES = 30.0


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``--workers`` and ``--ray``, for ``map_shards(..., workers=arguments.workers, ray=arguments.ray)``."""
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes, or Ray tasks at once (default: all cores, all of Ray)"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="run on a Ray cluster whose machines have vlp and see the same paths: 'auto' finds the one that "
        "runs here, 'local' starts one on this machine (default: processes)",
    )


def map_shards(
    function: Callable[[str], Result],
    paths: Sequence[str],
    description: str,
    workers: int | None = None,
    ray: str | None = None,
    gpus: float | None = None,
) -> Iterator[tuple[str, Result]]:
    """(path, ``function(path)``) of each path, in the order of ``paths``, with a progress bar on a terminal.

    ``function`` must be picklable (of a module, or a ``functools.partial`` of such) and its result small: a
    bounded number of results waits here for its turn. With one worker it runs in this process. Leaving the
    iteration early, or Ctrl-C, ends the workers. ``gpus`` is how many of them Ray gives each task.

    Raises:
        UserError: as raised by ``function``; a worker process was killed; Ray is missing, does not answer, or has not
            as many GPUs.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} must be at least 1")
    if not paths:
        return
    if ray is not None:
        results = _on_ray(function, paths, workers, ray, gpus)
    else:
        workers = min(workers or cores(), len(paths))
        results = _in_processes(function, paths, workers) if workers > 1 else ((p, function(p)) for p in paths)
    try:
        yield from _told(results, description, len(paths))
    finally:
        results.close()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _told(results: Iterator[Result], description: str, total: int) -> Iterator[Result]:
    """``track``, and where there is no terminal a line now and then, so that the log of a long run shows life."""
    if sys.stderr.isatty():
        yield from track(results, description, total)
        return
    last = time.monotonic()
    for done, result in enumerate(results, 1):
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            print(f"{description}: {done:,} of {total:,} shards", file=sys.stderr, flush=True)
            last = time.monotonic()
        yield result


def _in_processes(
    function: Callable[[str], Result], paths: Sequence[str], workers: int
) -> Generator[tuple[str, Result], None, None]:
    others = set(multiprocessing.active_children())
    # Spawned, not forked: a fork copies locks that the threads of torch, pyarrow or the bar hold at that moment.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    rest = iter(paths)
    waiting: deque[tuple[str, Future[Result]]] = deque()
    finished = False
    try:
        while True:
            for path in islice(rest, workers * _AHEAD - len(waiting)):
                waiting.append((path, pool.submit(function, path)))
            if not waiting:
                break
            result = waiting[0][1].result()
            yield waiting.popleft()[0], result
        finished = True
    except BrokenProcessPool as error:
        raise _killed(_running(waiting, workers)) from error
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()


def _running(waiting: deque[tuple[str, Future[Any]]], workers: int) -> list[str]:
    """What a broken pool was at: shards are taken in order, so the first ones without a result."""
    broken = (path for path, future in waiting if not future.done() or future.cancelled() or future.exception())
    return list(islice(broken, workers))


def _killed(suspects: Sequence[str]) -> UserError:
    named = f"one of {', '.join(suspects)}" if len(suspects) > 1 else "".join(suspects) or "no shard yet"
    return UserError(
        f"a worker process was killed while it read {named}: if memory ran out use fewer --workers, "
        "else look at that shard with --workers 1"
    )


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers: they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _on_ray(
    function: Callable[[str], Result], paths: Sequence[str], workers: int | None, address: str, gpus: float | None
) -> Generator[tuple[str, Result], None, None]:
    ray = _connect(address, workers)
    task = ray.remote(_call)
    if gpus:
        there = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if gpus > there:
            raise UserError(f"--gpus {gpus:g}: no machine of the Ray cluster has more than {there:g}: ask for fewer")
        task = task.options(num_gpus=gpus)
    at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
    rest = iter(paths)
    waiting: deque[tuple[str, Any]] = deque()
    try:
        while True:
            for path in islice(rest, at_once - len(waiting)):
                waiting.append((path, task.remote(function, path)))
            if not waiting:
                break
            path, reference = waiting[0]
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise _told_by_ray(ray.exceptions, error, path) from error
            waiting.popleft()
            yield path, result
    finally:
        for _, reference in waiting:
            ray.cancel(reference, force=True)


def _told_by_ray(kinds: Any, error: Any, path: str) -> BaseException:
    """The exception of the function itself, or a sentence on what kept it from running."""
    cause = error.cause if isinstance(error, kinds.RayTaskError) else error
    if isinstance(cause, (kinds.WorkerCrashedError, kinds.OutOfMemoryError)):
        return _killed([path])
    if isinstance(cause, kinds.RaySystemError):
        reason = str(cause).strip().splitlines()[-1]
        return UserError(
            f"a Ray task for {path} could not start ({reason}): install this version of vlp on every machine"
        )
    return cause


def _call(function: Callable[[str], Result], path: str) -> Result:
    return function(path)


def _connect(address: str, workers: int | None) -> Any:
    """The ray module, connected until this process ends: to connect takes seconds, and tools have several passes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs the package ray: pip install 'vlp[ray]'") from error
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR"}
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=workers or cores(),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=300 << 20,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--ray {address}: no cluster answers ({reason}): start one with 'ray start --head', or use --ray local"
        ) from error
    return ray
