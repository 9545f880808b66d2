"""Asking an OpenAI-compatible server, and all that goes wrong with servers: what is tried again, and for how long."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import openai
from aiolimiter import AsyncLimiter

from data_tools._language_models.base import Completion, Request, Sampling
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._language_models.engines.server import Engine

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between tries of one request, doubled from the first to the longest
BURST = 0.1  # seconds of a rate that may come at once, or what is late would be lost
QUIET = 5.0  # seconds that a server may be away before it is said
NAMED = 10  # requests given up that are named
OWN_FAULT = {400, 413, 422}  # statuses of a request that the server does not take, as it is
PASSES = {408, 409, 425, 429}  # and of one that it may take later, as all of 5xx but 501

Answer = TypeVar("Answer")


class Fault(Exception):
    """No answer this time. A server that is only busy may ask for ``wait`` seconds; junk came from no such server."""

    def __init__(self, reason: str, wait: float | None = None, busy: bool = False, junk: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.busy, self.junk = wait, busy, junk


class Refusal(Exception):
    """The same request would be refused again."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Server:
    """One server, asked from inside one event loop; ``terms`` say how. The key stays in here and out of all words.

    A request that fails is asked again, after pauses that double and are drawn, or as long as ``Retry-After`` says.
    After ``retries`` failures of its own something small is asked. Does the server answer that, and fails the request
    once more, then the request is given up; else the server is away, and counts as gone after ``patience`` seconds
    without an answer to any request.

    The first request that ends in an error ends all: calls under way may finish, within ``timeout``, since their
    answers are paid; what waits, and what would be asked again, is cancelled.
    """

    def __init__(self, terms: Engine, key: str | None) -> None:
        self._terms, self._key = terms, key
        self._client = openai.AsyncOpenAI(base_url=terms.url, api_key=key or "none", max_retries=0, timeout=None)
        self._places = asyncio.Semaphore(terms.in_flight)
        burst = max(1.0, (terms.rate or 0) * BURST)
        self._limit = AsyncLimiter(burst, burst / terms.rate) if terms.rate else None
        self._away_since: float | None = None
        self._said_away = False
        self._closed_until = 0.0
        self._given_up = 0
        self._ending = False
        self._waiting: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        await self._client.close()

    async def only_model(self) -> str:
        """The model of a server that has one.

        Raises:
            UserError: it has none or several, or it is gone.
        """
        try:
            models = await self._persistently(self._models)
        except Refusal as refusal:
            raise await self._sentence(refusal, "") from None
        if len(models) != 1:
            raise UserError(f"{self._terms.url} has {len(models)} models ({', '.join(models)}): name one with --model")
        return models[0]

    async def check(self, like: Request, model: str, sampling: Sampling) -> None:
        """Ask something small, so that what is refused from now on is a request's own fault.

        Raises:
            UserError: address, key, model or a setting of ``sampling`` is refused, or the server is gone.
        """
        try:
            await self._persistently(lambda: self._complete(_small(like), model, sampling))
        except Refusal as refusal:
            raise await self._sentence(refusal, model) from None

    async def ask(self, request: Request, model: str, sampling: Sampling) -> Completion | None:
        """The answer to ``request``, or None where only this request fails again and again.

        Raises:
            UserError: the server refuses everything, or it is gone.
            asyncio.CancelledError: another request has ended all.
        """
        try:
            async with self._places:
                return await self._answer(request, model, sampling)
        except Exception:
            self._end()
            raise

    async def _answer(self, request: Request, model: str, sampling: Sampling) -> Completion | None:
        failures, works = 0, False
        for tries in count():
            try:
                completion = await self._in_turn(lambda: self._complete(request, model, sampling))
                self._is_there()
                return completion
            except Refusal as refusal:
                self._is_there()
                if refusal.status not in OWN_FAULT:
                    await self.check(request, model, sampling)
                return Completion("", problem=str(refusal))
            except Fault as problem:
                fault = problem
            if not fault.busy:
                if works:
                    self._give_up(request, fault)
                    return None
                failures += 1
                works = failures > self._terms.retries and await self._works(request, model, sampling)
            if fault.busy or not works:
                await self._rest(fault, tries)
        raise AssertionError

    async def _persistently(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of ``call``, however often it has to be asked; nothing but junk ends it."""
        junk = 0
        for tries in count():
            try:
                answer = await self._in_turn(call)
                self._is_there()
                return answer
            except Fault as problem:
                fault = problem
            junk += fault.junk
            if junk > self._terms.retries:
                raise UserError(f"{self._terms.url} is no OpenAI-compatible server's address up to /v1 ({fault})")
            await self._rest(fault, tries)
        raise AssertionError

    async def _works(self, like: Request, model: str, sampling: Sampling) -> bool:
        try:
            await self._in_turn(lambda: self._complete(_small(like), model, sampling))
        except (Fault, Refusal):
            return False
        return True

    def _give_up(self, request: Request, fault: Fault) -> None:
        self._given_up += 1
        if self._given_up <= NAMED:
            _say(f"{self._terms.url} writes nothing for {request.caption!r} ({fault}): left for the next run")

    # ---- When to ask

    async def _in_turn(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        with self._unless_ending():
            while (closed := self._closed_until - _now()) > 0:
                await asyncio.sleep(closed)
            if self._limit:
                await self._limit.acquire()
        return await self._outcome(call)

    def _end(self) -> None:
        self._ending = True
        for task in self._waiting:
            task.cancel()

    @contextmanager
    def _unless_ending(self) -> Iterator[None]:
        """Around every pause before a call: the task is cancelled in it, or on the way into it."""
        task = asyncio.current_task()
        assert task is not None
        if self._ending:
            raise asyncio.CancelledError
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)

    def _is_there(self) -> None:
        self._away_since, self._said_away = None, False

    async def _rest(self, fault: Fault, tries: int) -> None:
        """The pause after try number ``tries``.

        Raises:
            UserError: it would be longer than our patience.
        """
        now, terms = _now(), self._terms
        self._away_since = now if self._away_since is None else self._away_since
        left = terms.patience - (now - self._away_since)
        if left <= 0:
            raise UserError(
                f"{terms.url} has answered nothing for {now - self._away_since:.0f} s ({fault}): "
                "run again when it is back, or raise --patience"
            )
        if fault.wait is not None and fault.wait > left:
            raise UserError(f"{terms.url} wants to be left alone for {fault.wait:.0f} s ({fault}): run again later")
        if now - self._away_since > QUIET and not self._said_away:
            self._said_away = True
            _say(f"{terms.url} does not answer ({fault}): waiting up to {terms.patience:.0f} s for it")
        pause = min(FIRST_PAUSE * 2 ** min(tries, 20), LONGEST_PAUSE) * random.uniform(0.5, 1)
        if fault.wait is not None:
            self._closed_until = max(self._closed_until, now + fault.wait)
            pause += fault.wait
        with self._unless_ending():
            await asyncio.sleep(min(pause, left))

    # ---- One call

    async def _models(self) -> list[str]:
        try:
            page: Any = await self._client.models.list()
        except AttributeError:  # what the client does with a page of HTML
            page = None
        models = getattr(page, "data", None)
        if not isinstance(models, list) or not all(isinstance(getattr(model, "id", None), str) for model in models):
            raise Fault("no list of models", junk=True)
        return sorted(model.id for model in models)

    async def _complete(self, request: Request, model: str, sampling: Sampling) -> Completion:
        options: dict[str, Any] = {"model": model, "seed": request.seed, **sampling.model_dump(exclude={"stop"})}
        if sampling.stop:
            options["stop"] = list(sampling.stop)
        answer: Any
        if isinstance(request.prompt, str):
            answer = await self._client.completions.create(prompt=request.prompt, **options)
            choice = _first_choice(answer)
            text = getattr(choice, "text", None)
        else:
            messages: Any = [{"role": role, "content": content} for role, content in request.prompt]
            answer = await self._client.chat.completions.create(messages=messages, **options)
            choice = _first_choice(answer)
            message = getattr(choice, "message", None)
            text = getattr(message, "content", None)
            if text is None and hasattr(message, "content"):  # nothing but thoughts, a call of a tool, or a refusal
                text = ""
        if getattr(choice, "finish_reason", None) == "content_filter" and not text:
            raise Refusal("content filter", 400)
        if not isinstance(text, str):
            raise Fault("an answer without a text", junk=True)
        usage = getattr(answer, "usage", None)
        return Completion(text, _number(usage, "prompt_tokens"), _number(usage, "completion_tokens"))

    async def _outcome(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """What ``call`` gives; every failure as a `Fault` or a `Refusal`, without its cause, which holds the key."""
        try:
            return await asyncio.wait_for(call(), self._terms.timeout)
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise Fault(f"no answer within {self._terms.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise Fault(self._harmless(str(error.__cause__ or error) or type(error.__cause__).__name__)) from None
        except (openai.OpenAIError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise Fault(f"an answer that is no completion: {type(error).__name__}", junk=True) from None

    def _of_status(self, error: openai.APIStatusError) -> Fault | Refusal:
        said = self._harmless(_message(error.body))
        reason = f"{error.status_code}: {said}" if said else str(error.status_code)
        no_quota = error.code == "insufficient_quota"  # 429 as well, but no pause cures it
        passes = error.status_code in PASSES or error.status_code >= 500
        if no_quota or error.status_code == 501 or not passes:
            return Refusal(reason, error.status_code)
        wait = _retry_after(error.response.headers.get("retry-after"))
        return Fault(reason, wait, busy=error.status_code == 429)

    def _harmless(self, said: str) -> str:
        """What a server said, on one line, short, and without the key."""
        said = said.replace(self._key, "***") if self._key else said
        said = " ".join(said.split())
        return said if len(said) <= 200 else f"{said[:200]}..."

    async def _sentence(self, refusal: Refusal, model: str) -> UserError:
        url = self._terms.url
        if refusal.status in (401, 403):
            if not self._key:
                return UserError(f"{url} wants a key ({refusal}): put it into the variable {self._terms.key_variable}")
            return UserError(f"{url} refuses the key in the variable {self._terms.key_variable} ({refusal})")
        if refusal.status in (404, 405):
            try:
                models = await self._in_turn(self._models)
            except (Fault, Refusal):
                return UserError(f"{url} is not a server's address up to /v1, or lacks this kind of prompt ({refusal})")
            return UserError(
                f"{url} does not have the model '{model}' for such prompts ({refusal}); it has {', '.join(models)}"
            )
        return UserError(f"{url} refuses whatever it is asked ({refusal})")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _small(like: Request) -> Request:
    """A request of the same kind that no server has a reason to refuse."""
    return Request("", 0, "A dog" if isinstance(like.prompt, str) else (("user", "Name an animal."),), 0)


def _first_choice(answer: Any) -> Any:
    choices = getattr(answer, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def _number(usage: Any, name: str) -> int:
    number = getattr(usage, name, None)
    return number if isinstance(number, int) else 0


def _message(body: object) -> str:
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body.get("error") or "")
    return body if isinstance(body, str) and not body.lstrip().startswith("<") else ""


def _retry_after(header: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header: a number, or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds())
