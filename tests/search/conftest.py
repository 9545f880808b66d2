"""A small set of embeddings by a real tower of random weights, and a real browser where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faiss")
pytest.importorskip("uvicorn")

from vlp.cli import main
from vlp.data.write import ShardWriter, encode_image
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions
from vlp.search.searcher import Searcher

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
WORDS = ["red", "green", "blue", "white", "dog", "cat", "house", "tree", "boat", "star", "moon", "fish", "bird", "cup"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def picture(seed: int) -> Image.Image:
    """Blobs of colour, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC)


def png(seed: int) -> bytes:
    return encode_image(picture(seed))


@pytest.fixture(scope="session")
def encoded() -> Callable[[int], bytes]:
    """Number of a picture -> its bytes."""
    return png


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    def save(seed: int) -> str:
        directory = tmp_path_factory.mktemp("model")
        openclip.save_openclip_directory(openclip.build(ModelOptions(config=CONFIG), seed=seed), directory)
        return str(directory)

    return save


@pytest.fixture(scope="session")
def model(save_model: Callable[[int], str]) -> str:
    return save_model(0)


@pytest.fixture(scope="session")
def embeddings(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of two shards with their captions, one of which is markup, and 3 of a folder."""
    home = tmp_path_factory.mktemp("set")
    with ShardWriter(home / "shards", 20) as writer:
        for number in range(40):
            text = f"a {WORDS[number % 14]} and a {WORDS[(number * 5 + 3) % 14]} {number}"
            writer.write(png(number), "png", text if number != 5 else "<b onclick=alert(1)>bold & 'quoted'</b>")
    (home / "photos").mkdir()
    for number in range(40, 43):
        (home / "photos" / f"{number}.png").write_bytes(png(number))
    out = home / "embeddings"
    main(
        ["embed", model, str(home / "shards"), str(home / "photos"), "--texts", "--output", str(out), "--workers", "1"]
    )
    return out


@pytest.fixture(scope="session")
def searcher(embeddings: Path) -> Searcher:
    return Searcher(embeddings)


class Server:
    """``vlp search EMBEDDINGS --serve`` in a process of its own."""

    def __init__(self, embeddings: Path, *options: str) -> None:
        command = [sys.executable, "-m", "vlp", "search", str(embeddings), "--serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split(" ")[0]
        assert self.address.startswith("http://"), self.process.communicate()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def server(embeddings: Path) -> Iterator[Server]:
    running = Server(embeddings)
    yield running
    running.end()


class Browser:
    """Chromium by its DevTools protocol, over a pipe: JSON messages with a zero byte behind each."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        own_read, self._write = os.pipe()
        self._read, own_write = os.pipe()

        def as_chromium_wants_them() -> None:
            high = [os.dup(own_read), os.dup(own_write)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars"
        quiet += " --disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
        self._process = subprocess.Popen(
            [CHROMIUM, *quiet.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=as_chromium_wants_them,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(own_read)
        os.close(own_write)
        self._number, self._rest, self._session = 0, b"", ""
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; complaints of the page that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"])[:400])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._read, 1 << 16)
            assert data, "the browser has gone"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def type(self, text: str) -> None:
        """As from a keyboard, into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, text: str = "") -> None:
        code = {"Enter": 13, "Tab": 9, " ": 32}[key]
        name = {" ": "Space"}.get(key, key)
        event = {"key": key, "code": name, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of an element."""
        box = self.run(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def choose_file(self, selector: str, path: Path) -> None:
        document = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop_file(self, path: Path, x: int, y: int) -> None:
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium to look with: apt-get install chromium")
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.end()
