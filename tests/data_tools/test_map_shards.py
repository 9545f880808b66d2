import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools import _map_shards
from data_tools._map_shards import map_shards
from vlp.types import UserError

# Workers import the functions they run, so these cannot live in a test module.
JOBS = """
import os, signal, time
from pathlib import Path
from vlp.types import UserError

def late_first(path):
    time.sleep(0.3 if path == "shard-0" else 0.0)
    return path.upper(), os.getpid()

def refuse_two(path):
    if path == "shard-2":
        raise UserError("shard-2 is cut short: copy it again")

def kill_at_two(path):
    if path == "shard-2":
        os.kill(os.getpid(), signal.SIGKILL)

def report_and_sleep(path, folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
"""

PATHS = [f"shard-{i}" for i in range(9)]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "shard_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    import shard_jobs  # type: ignore[import-not-found]

    yield shard_jobs
    del sys.modules["shard_jobs"]


@pytest.fixture
def ray_of_two() -> Iterator[str]:
    ray = pytest.importorskip("ray")
    yield "local"
    ray.shutdown()


def test_one_worker_is_this_process(jobs: Any) -> None:
    assert list(map_shards(jobs.late_first, PATHS, "", 1)) == [(p, (p.upper(), os.getpid())) for p in PATHS]


def test_results_come_in_the_order_of_the_paths_from_several_processes(jobs: Any) -> None:
    found = list(map_shards(jobs.late_first, PATHS, "", 2))
    assert [(path, result) for path, (result, _) in found] == [(p, p.upper()) for p in PATHS]
    processes = {process for _, (_, process) in found}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_no_shards_no_processes(jobs: Any) -> None:
    assert list(map_shards(jobs.late_first, [], "", 2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistake_found_by_a_worker_stays_a_sentence(jobs: Any, workers: int) -> None:
    with pytest.raises(UserError, match=r"^shard-2 is cut short: copy it again$"):
        list(map_shards(jobs.refuse_two, PATHS, "", workers))


def test_a_killed_worker_names_the_shard(jobs: Any) -> None:
    with pytest.raises(UserError, match=r"killed while it read .*shard-2.*--workers"):
        list(map_shards(jobs.kill_at_two, PATHS, "", 2))


def test_workers_below_one_are_refused(jobs: Any) -> None:
    with pytest.raises(UserError, match="--workers 0 must be at least 1"):
        list(map_shards(jobs.late_first, PATHS, "", 0))


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _listen_to_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_run(jobs: Any, tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C lets the run clean up; after kill -9 the workers must notice by themselves."""
    started = tmp_path / "started"
    started.mkdir()
    code = (
        "from functools import partial\nimport shard_jobs\nfrom data_tools._map_shards import map_shards\n"
        f"job = partial(shard_jobs.report_and_sleep, folder={str(started)!r})\n"
        f"if __name__ == '__main__': list(map_shards(job, {PATHS}, '', 2))"
    )
    (tmp_path / "run.py").write_text(code)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "run.py"], stderr=subprocess.PIPE, text=True, preexec_fn=_listen_to_interrupts
    )
    deadline = time.monotonic() + 30
    while len(workers := list(started.iterdir())) < 2:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(how)
    run.wait(10)
    while any(_is_alive(int(worker.name)) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the run"
        time.sleep(0.01)


def test_leaving_early_ends_the_workers(jobs: Any) -> None:
    results = map_shards(jobs.late_first, [f"shard-{i}" for i in range(1, 200)], "", 2)
    _, (_, process) = next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while _is_alive(process):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_long_work_without_a_terminal_prints_plain_lines(
    jobs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list(map_shards(jobs.refuse_two, PATHS[3:], "counting", 1))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_map_shards, "_SECONDS_BETWEEN_LINES", 0.0)
    list(map_shards(jobs.refuse_two, PATHS[3:], "counting", 1))
    assert capsys.readouterr().err.splitlines()[-1] == "counting: 6 of 6 shards"


def test_ray_that_is_missing_is_named_with_its_extra(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'vlp\[ray\]'"):
        list(map_shards(jobs.late_first, PATHS, "", ray="local"))


@pytest.mark.slow
def test_ray_machines_without_the_code_are_told_to_install_it(
    jobs: Any, ray_of_two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(UserError, match=r"No module named 'shard_jobs'.*install this version of vlp"):
        list(map_shards(jobs.late_first, PATHS, "", 2, ray_of_two))


@pytest.mark.slow
def test_ray_gives_what_processes_give(jobs: Any, ray_of_two: str) -> None:
    with pytest.raises(UserError, match=r"--ray auto: no cluster answers .*ray start --head"):
        list(map_shards(jobs.late_first, PATHS, "", 2, "auto"))
    found = list(map_shards(jobs.late_first, PATHS, "", 2, ray_of_two))
    assert [(path, result) for path, (result, _) in found] == [(p, p.upper()) for p in PATHS]
    assert os.getpid() not in {process for _, (_, process) in found}
    with pytest.raises(UserError, match=r"^shard-2 is cut short: copy it again$"):
        list(map_shards(jobs.refuse_two, PATHS, "", 2, ray_of_two))
