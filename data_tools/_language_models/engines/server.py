"""Any OpenAI-compatible server: vLLM, llama.cpp, a hosted model; many requests in flight."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property, partial
from ipaddress import ip_address, ip_network
from itertools import chain, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from data_tools._language_models import base
from data_tools._language_models.base import Completion, Request, Sampling
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._language_models.asking import Server

USUAL_VARIABLE = "OPENAI_API_KEY"
NEAR = [ip_network(net) for net in ("127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
LEAVING = 5  # seconds that closing connections may take

Result = TypeVar("Result")
_Answers: TypeAlias = "SimpleQueue[tuple[Request, Future[Completion | None]]]"


class Engine(base.Engine, frozen=True, extra="forbid"):
    """Asks a server over HTTP: a text prompt at its ``completions``, a conversation at its ``chat/completions``.

    It is asked something small first, so a wrong address, key, model or setting ends the run before it begins. What the
    server does not take as it is (400, 413, 422, a content filter) is a completion with a problem. A request that fails
    again and again while the server answers others comes back with None. When the server goes away or refuses all, what
    it still answers is yielded before the error; whoever leaves early or interrupts waits for nothing.
    """

    url: str = Field(description="address of the server up to /v1, such as http://localhost:8000/v1")
    model: str | None = Field(
        default=None, description="name of the model, as the server calls it; by default the only one it has"
    )
    in_flight: int = Field(default=64, ge=1, description="requests at once")
    rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="requests a second, at most, of each process"
    )
    timeout: float = Field(default=90, gt=0, allow_inf_nan=False, description="seconds that one answer may take")
    retries: int = Field(default=4, ge=0, description="times that a failed request is asked again while others succeed")
    patience: float = Field(
        default=600, ge=0, allow_inf_nan=False, description="seconds that the server may be away before the run ends"
    )
    key_variable: str = Field(
        default=USUAL_VARIABLE, min_length=1, description="environment variable that holds the server's key"
    )

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not re.fullmatch(r"https?://([^\s/@?#:\[\]]+|\[[\da-fA-F:.]+\])(:\d+)?(/[^\s@?#]*)?", url):
            raise ValueError("give http://HOST:PORT/v1 or https://HOST/v1, without a name, a password or a key")
        return url.rstrip("/")

    @property
    def at_once(self) -> int:
        return self.in_flight

    def identity(self) -> dict[str, Any]:
        return {"engine": "server", "model": self._name}

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion | None]]:
        rest = iter(requests)
        first = next(rest, None)
        if first is None:
            return
        rest, model = chain([first], rest), self._name
        answers: _Answers = SimpleQueue()
        with self._connected() as (server, calls):
            calls.start(server.check(first, model, sampling)).result()
            waiting, failure = 0, None
            while True:
                for request in islice(rest, 0 if failure else 2 * self.in_flight - waiting):
                    answer = calls.start(server.ask(request, model, sampling))
                    answer.add_done_callback(partial(_put, answers, request))
                    waiting += 1
                if not waiting:
                    break
                request, answer = answers.get()
                waiting -= 1
                if answer.cancelled():
                    continue
                error = answer.exception()
                if error is None:
                    yield request, answer.result()
                failure = failure or error
        if failure:
            raise failure

    @cached_property
    def _name(self) -> str:
        if self.model is not None:
            return self.model
        with self._connected() as (server, calls):
            return calls.start(server.only_model()).result()

    @contextmanager
    def _connected(self) -> Iterator[tuple[Server, _Calls]]:
        try:
            from data_tools._language_models.asking import Server
        except ModuleNotFoundError as error:
            raise UserError(f"--engine server needs the package {error.name}: pip install 'vlp[rewrite]'") from error
        with _Calls() as calls:
            server = Server(self, self._key())
            try:
                yield server, calls
            finally:
                calls.cancel()
                calls.start(server.close()).result(LEAVING)

    def _key(self) -> str | None:
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self.key_variable != USUAL_VARIABLE:
            raise UserError(f"--key-variable: the environment variable {self.key_variable} holds no key")
        if not key.isascii() or not key.isprintable():
            raise UserError(f"the key in the environment variable {self.key_variable} has letters that no key has")
        if not key:
            return None
        address = urlsplit(self.url)
        if key in unquote(address.path):
            raise UserError(
                f"--url has the key of the environment variable {self.key_variable} in it: leave it out there"
            )
        host, meant = address.hostname or "", "key_variable" in self.model_fields_set
        if address.scheme == "http" and not meant and not _is_near(host):
            raise UserError(
                f"the key in the environment variable {self.key_variable} would go unencrypted to {host}: give an "
                f"address with https, unset the variable, or say --key-variable {self.key_variable} if that is meant"
            )
        return key


def _is_near(host: str) -> bool:
    """Whether ``host`` is this machine or one of a private network."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host
    return any(address in net for net in NEAR)


def _put(answers: _Answers, request: Request, answer: Future[Completion | None]) -> None:
    answers.put((request, answer))


class _Calls:
    """An event loop in a thread of its own: calls go on while the caller reads captions or writes texts."""

    def __enter__(self) -> _Calls:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, call: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def cancel(self) -> None:
        """End what still runs."""
        self.start(self._cancel()).result(LEAVING)

    async def _cancel(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
