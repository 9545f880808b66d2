"""Stands in for SLURM, which no test has: ``srun`` and ``scontrol`` as far as recipes/launch/slurm uses them.

What it does is what the manuals say: srun starts tasks with SLURM's variables, hands signals on to them, kills the
others some time after the first has ended (--wait) and ends with the highest code; scontrol requeue leaves a note.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path


def install(folder: Path) -> None:
    """``srun`` and ``scontrol`` as commands in ``folder``."""
    folder.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" {name} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)


def srun(arguments: list[str]) -> int:
    command = arguments[next(i for i, word in enumerate(arguments) if not word.startswith("-")) :]
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
    processes: list[subprocess.Popen[bytes]] = []
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: [p.send_signal(number) for p in processes])
    for task in range(tasks):
        node, local = divmod(task, tasks // nodes)
        place = {"SLURM_PROCID": task, "SLURM_LOCALID": local, "SLURM_NODEID": node}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        processes.append(subprocess.Popen(command, env=environment))
    wait_s = next(float(word.removeprefix("--wait=")) for word in arguments if word.startswith("--wait="))
    until = float("inf")
    while any(p.poll() is None for p in processes):
        if any(p.poll() is not None for p in processes):
            until = min(until, time.monotonic() + wait_s)
        if time.monotonic() > until:
            for p in processes:
                p.kill()
        time.sleep(0.01)
    return max(p.returncode if p.returncode >= 0 else 128 - p.returncode for p in processes)


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print("\n".join(["127.0.0.1"] * int(os.environ["SLURM_NNODES"])))
    elif arguments[0] == "requeue":
        with open(os.environ["REQUEUED"], "a") as notes:
            print(arguments[1], file=notes)
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
