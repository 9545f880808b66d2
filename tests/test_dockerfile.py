"""The steps of the Dockerfile, as far as they run without Docker: in a virtual environment of their own.

Requirements are not fetched again; the new environment sees those that the tests run with.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


def steps(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) of each step, lines that go on joined."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]  # type: ignore[misc]


STEPS = steps((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def arguments(instruction: str) -> list[str]:
    return [argument for name, argument in STEPS if name == instruction]


def test_it_ends_as_a_user_without_rights_whose_command_is_vlp() -> None:
    assert [name for name, _ in STEPS][-4:] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert arguments("USER") == ["vlp"]
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["vlp"]


def test_its_base_is_small_and_its_cuda_that_of_torch() -> None:
    match = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-base-ubuntu24\.04", arguments("FROM")[0])
    assert match is not None
    requires = metadata.requires("torch") or []
    major = (torch.version.cuda or match[1]).split(".")[0]
    assert match[1] == major
    if torch.version.cuda is not None:
        assert any(name.startswith(f"nvidia-nccl-cu{major}") for name in requires), "NCCL comes with torch"


def test_the_extras_it_installs_exist() -> None:
    (extras,) = re.findall(r'pip install "\.\[(.*?)\]"', "\n".join(arguments("RUN")))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [extra for extra in extras.split(",") if extra not in known] == []


def test_the_code_comes_last() -> None:
    """So that a change of it needs no new layer but its own."""
    whole = STEPS.index(("COPY", ". /src"))
    assert [name for name, _ in STEPS[whole + 1 :]] == ["RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert "--no-deps" in STEPS[whole + 1][1]


def test_every_step_is_valid_shell() -> None:
    for step in arguments("RUN"):
        subprocess.run(["bash", "-n", "-c", step], check=True)


def ignored(folder: str, names: list[str]) -> set[str]:
    """What .dockerignore keeps out of ``COPY .``: names at the top, or anywhere."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    here = [pattern.removeprefix("**/") for pattern in patterns if Path(folder) == ROOT or pattern.startswith("**/")]
    return shutil.ignore_patterns(*here)(folder, names)


@pytest.mark.slow
def test_its_steps_make_a_vlp_that_works(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    moved = {"/opt/vlp": str(tmp_path / "opt"), "/src": str(tmp_path / "src")}

    def here(text: str) -> str:
        for path, place in moved.items():
            text = re.sub(rf"(?<![\w/.]){path}\b", place, text)
        return text.replace("pip install", "pip install --no-index --no-deps --no-build-isolation -q")

    (tmp_path / "src").mkdir()
    for instruction, argument in STEPS:
        if instruction == "ENV":
            pairs = dict(pair.split("=", 1) for pair in shlex.split(argument))
            environment |= {k: here(v).replace("$PATH", environment["PATH"]) for k, v in pairs.items() if k != "HOME"}
        elif instruction == "COPY":
            source, _, place = argument.partition(" ")
            if source == ".":
                shutil.copytree(ROOT, here(place), ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, here(place))
        elif instruction == "RUN" and not argument.startswith(("apt-get", "useradd")):
            command = here(argument).replace("python3 -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            for site in (tmp_path / "opt").glob("lib/python3*/site-packages"):
                (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"])
    assert not (tmp_path / "src").exists()
    entry = tmp_path / "opt" / "bin" / json.loads(arguments("ENTRYPOINT")[0])[0]
    for words in (["recipes"], json.loads(arguments("CMD")[0])):
        done = subprocess.run([str(entry), *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "quickstart" in done.stdout
    code = "import vlp; print(vlp.__file__)"
    python = [str(tmp_path / "opt/bin/python"), "-c", code]
    where = subprocess.run(python, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert where.splitlines()[-1].startswith(str(tmp_path / "opt"))
