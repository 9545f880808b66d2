"""A stand-in for a language model's server, which does wrong what a real one does seldom."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True)
class Reply:
    """What the stand-in sends: ``body`` as JSON unless it is bytes; after ``cut`` bytes it hangs up."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass(frozen=True)
class Asked:
    """What came: the path below /v1, the prompt or the last message, the body, and how often it came before."""

    path: str
    prompt: str
    body: dict[str, Any]
    before: int
    key: str


def completion(text: str, chat: bool = False) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Reply({"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage})


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128  # with the usual 5 many connections at once wait a second for another try
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *arguments: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # an engine that has left
            super().handle_error(*arguments)


class StandIn:
    """Answers a prompt with itself in capitals, unless ``script`` has another reply; keeps what it was asked.

    It is no model and no real server: HTTP/1.1 by the standard library, a thread a connection.
    """

    def __init__(self) -> None:
        self.models = ["the-model"]
        self.script: Callable[[Asked], Reply | None] = lambda asked: None
        self.asked: list[Asked] = []
        self.times: list[float] = []
        self.now_in = self.most_at_once = 0
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._listener = _Listener(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}/v1"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def times_asked(self) -> Counter[str]:
        """How often each prompt came, but for the model and the small thing that the engine asks first."""
        return Counter(asked.prompt for asked in self.asked if asked.prompt not in ("", "A dog", "Name an animal."))

    def reply(self, path: str, body: dict[str, Any], key: str) -> Reply:
        messages = body.get("messages")
        prompt = messages[-1]["content"] if messages else body.get("prompt", "")
        with self._lock:
            asked = Asked(path, prompt, body, self._seen[prompt], key)
            self._seen[prompt] += 1
            self.asked.append(asked)
            self.times.append(time.monotonic())
        scripted = self.script(asked)
        if scripted is not None:
            return scripted
        if path == "models":
            return Reply({"object": "list", "data": [{"id": model, "object": "model"} for model in self.models]})
        return completion(prompt.upper(), chat=bool(messages))

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._lock:
            self.now_in += 1
            self.most_at_once = max(self.most_at_once, self.now_in)
        try:
            yield
        finally:
            with self._lock:
                self.now_in -= 1


def _handler(owner: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            with owner.inside():
                reply = owner.reply(self.path.removeprefix("/v1/"), body, key)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            kind = "text/html" if content.startswith(b"<") else "application/json"
            if reply.cut == 0:
                return self._hang_up()
            self.send_response(reply.status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: reply.cut])
            if reply.cut is not None:
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def reply() -> type[Reply]:
    return Reply
