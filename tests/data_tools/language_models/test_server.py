from __future__ import annotations

import gc
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError

from data_tools._language_models import asking
from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._language_models.engines.server import Engine
from vlp.types import UserError

KEY = "sk-test-3f9a0c71d2"
DRAWN = Sampling(max_tokens=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and no key of the machine."""
    monkeypatch.setattr(asking, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(asking, "LONGEST_PAUSE", 0.1)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def requests(number: int) -> list[Request]:
    return [Request(f"caption {i}", 0, f"dog {i}", i) for i in range(number)]


def answers(engine: Engine, asked: list[Request]) -> dict[str, Any]:
    """Completions by caption; every request comes once."""
    found = list(engine.complete(iter(asked), DRAWN))
    assert sorted(request.caption for request, _ in found) == sorted(request.caption for request in asked)
    return {request.caption: completion for request, completion in found}


def capitals(number: int) -> dict[str, Any]:
    return {f"caption {i}": Completion(f"DOG {i}", 7, 3) for i in range(number)}


# ---- A real model behind a real server


def test_a_real_model_goes_on_with_texts_and_answers_conversations(language_server: Any) -> None:
    engine = Engine(url=language_server.url, in_flight=2)
    few = "red car => car painted red\nlittle dog => small dog\nbig house =>"
    talk = (("system", "You rewrite captions."), ("user", "A small dog."))
    found = answers(engine, [Request("text", 0, few, 1), Request("chat", 0, talk, 2)])
    assert engine.identity() == {"engine": "server", "model": "smollm2"}
    for completion in found.values():
        assert completion.text.strip()
        assert not completion.problem
        assert 0 < completion.tokens <= 4
        assert completion.prompt_tokens > 4


def test_a_real_model_gives_the_same_text_for_the_same_seed(language_server: Any) -> None:
    engine = Engine(url=language_server.url, model="smollm2", in_flight=1)
    asked = [Request(f"caption {seed}", 0, "A photo of a", seed) for seed in range(4)]
    first = answers(engine, asked)
    assert {caption: c.text for caption, c in answers(engine, asked).items()} == {k: c.text for k, c in first.items()}
    assert len({completion.text for completion in first.values()}) > 1


def test_a_prompt_beyond_the_context_of_a_real_model_is_a_problem_of_its_own(language_server: Any) -> None:
    found = answers(Engine(url=language_server.url), [Request("long", 0, "dog " * 600, 1), Request("fine", 0, "A", 1)])
    assert "context" in found["long"].problem
    assert not found["long"].text
    assert not found["fine"].problem


def test_a_real_server_dies_and_comes_back(start_language_server: Callable[..., Any]) -> None:
    server = start_language_server()
    back: list[threading.Thread] = []
    found = []
    for request, completion in Engine(url=server.url, in_flight=4).complete(requests(12), DRAWN):
        found.append(request.caption)
        assert completion.tokens
        if len(found) == 4:
            server.kill()
            back = [threading.Thread(target=start_language_server, args=(server.port,))]
            back[0].start()
    back[0].join()
    assert sorted(found) == sorted(request.caption for request in requests(12))


def test_a_real_server_dies_for_good(start_language_server: Callable[..., Any]) -> None:
    server = start_language_server()
    running = Engine(url=server.url, in_flight=4, patience=0.3).complete(requests(12), DRAWN)
    found = [next(running) for _ in range(4)]
    server.kill()
    with pytest.raises(UserError, match=f"{server.url} has answered nothing for") as error:
        found += running  # what had come before counts
    assert all(completion.tokens for _, completion in found)
    assert "\n" not in str(error.value)


def test_a_real_server_with_a_key(start_language_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_language_server(key=KEY)
    with pytest.raises(UserError, match=r"wants a key .* variable OPENAI_API_KEY"):
        answers(Engine(url=server.url, model="smollm2"), requests(1))
    monkeypatch.setenv("WRONG", f"{KEY}-wrong")
    with pytest.raises(UserError, match="refuses the key in the variable WRONG") as error:
        answers(Engine(url=server.url, model="smollm2", key_variable="WRONG"), requests(1))
    assert KEY not in str(error.value)
    monkeypatch.setenv("RIGHT", f"{KEY}\n")
    assert len(answers(Engine(url=server.url, key_variable="RIGHT"), requests(2))) == 2


# ---- Many at once


def test_requests_are_in_flight_together_and_no_more_than_allowed(stand_in: Any) -> None:
    together = threading.Barrier(16)

    def script(asked: Any) -> None:
        if asked.prompt.startswith("dog"):
            together.wait(30)  # nobody is answered before sixteen have come

    stand_in.script = script
    assert answers(Engine(url=stand_in.url, in_flight=16), requests(64)) == capitals(64)
    assert stand_in.most_at_once == 16


def test_a_slow_answer_holds_up_no_other(stand_in: Any) -> None:
    others = threading.Event()
    stand_in.script = lambda asked: others.wait(30) and None if asked.prompt == "dog 0" else None
    found = []
    for request, _ in Engine(url=stand_in.url, in_flight=4).complete(requests(8), DRAWN):
        found.append(request.caption)
        if len(found) == 7:
            others.set()
    assert found[-1] == "caption 0"


def test_the_rate_is_kept(stand_in: Any) -> None:
    before = time.monotonic()
    assert answers(Engine(url=stand_in.url, rate=20), requests(12)) == capitals(12)
    # Two may come at once, the others a twentieth of a second apart; late ones are later still.
    came = [moment - before for moment, asked in zip(stand_in.times, stand_in.asked, strict=True) if asked.prompt]
    assert len(came) == 13
    assert all(moment >= (place - 2) / 20 for place, moment in enumerate(came))


def test_no_request_asks_no_server() -> None:
    assert answers(Engine(url="http://127.0.0.1:9/v1", model="m"), []) == {}


def test_no_heavy_import_before_the_first_text() -> None:
    code = "import sys, data_tools._language_models.engines.server; print({'openai', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("package", ["openai", "aiolimiter"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "data_tools._language_models.asking")
    monkeypatch.setitem(sys.modules, package, None)
    engine = Engine(url="http://127.0.0.1:9/v1")
    for use in (engine.identity, lambda: list(engine.complete(requests(1), DRAWN))):
        with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'vlp\[rewrite\]'"):
            use()


# ---- What passes

PASSING = {
    "busy": {"status": 429, "body": {"error": {"message": "slow down"}}},
    "slow request": {"status": 408},
    "error": {"status": 500, "body": {"error": "broken"}},
    "bad gateway": {"status": 502, "body": b"<html>502</html>"},
    "loading": {"status": 503, "body": {"error": {"message": "Loading model"}}},
    "page": {"body": b"<html>Be back soon</html>"},
    "no choices": {"body": {"id": "x"}},
    "empty choices": {"body": {"choices": []}},
    "error as success": {"body": {"error": {"message": "upstream"}}},
    "no text": {"body": {"choices": [{"text": None}]}},
    "number": {"body": {"choices": [{"text": 3}]}},
    "list": {"body": [1, 2]},
    "half of it": {"body": b'{"choices": [{"text": "DOG', "headers": {"Content-Type": "application/json"}},
    "no bytes": {"body": b"", "headers": {"Content-Type": "application/json"}},
    "not unicode": {"body": b'{"choices": "\xff"}', "headers": {"Content-Type": "application/json"}},
    "hangs up": {"cut": 0},
    "hangs up in the middle": {"body": {"choices": [{"text": "DOG"}]}, "cut": 9},
}


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("kind", PASSING)
def test_what_fails_is_asked_again_and_what_was_answered_is_not(
    stand_in: Any, reply: Any, kind: str, chat: bool
) -> None:
    stand_in.script = lambda asked: reply(**PASSING[kind]) if asked.prompt == "dog 1" and asked.before < 2 else None
    asked = requests(4)
    if chat:
        asked = [Request(r.caption, 0, (("system", "Say it."), ("user", str(r.prompt))), r.seed) for r in asked]
    assert answers(Engine(url=stand_in.url), asked) == capitals(4)
    assert stand_in.times_asked() == {"dog 0": 1, "dog 1": 3, "dog 2": 1, "dog 3": 1}


def test_an_answer_that_takes_too_long_is_asked_again(stand_in: Any) -> None:
    late = threading.Event()
    stand_in.script = lambda asked: late.wait(30) and None if asked.prompt == "dog 1" and not asked.before else None
    assert answers(Engine(url=stand_in.url, timeout=1), requests(3)) == capitals(3)
    late.set()
    assert stand_in.times_asked()["dog 1"] == 2


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
def test_the_pause_that_a_server_asks_for_is_kept_by_all(stand_in: Any, reply: Any, as_date: bool) -> None:
    together, at = threading.Barrier(2), []

    def script(asked: Any) -> Any:
        if asked.prompt in ("dog 0", "dog 1") and not asked.before:
            together.wait(30)
            if asked.prompt == "dog 1":
                time.sleep(0.4)  # so that its answer, after which another request follows, comes later than the pause
                return None
            now = datetime.now(timezone.utc)
            later = format_datetime(now + timedelta(seconds=2), usegmt=True)  # whole seconds, so it is one at least
            at.append(time.monotonic())
            return reply(status=429, headers={"Retry-After": later if as_date else "0.9"})
        return None

    stand_in.script = script
    assert answers(Engine(url=stand_in.url, in_flight=2), requests(4)) == capitals(4)
    after = [moment for moment in stand_in.times if moment > at[0]]
    assert len(after) == 3
    assert min(after) - at[0] >= 0.9


def test_a_longer_pause_than_our_patience_ends_the_run_at_once(stand_in: Any, reply: Any) -> None:
    stand_in.script = lambda asked: reply(status=429, headers={"Retry-After": "7200"})
    with pytest.raises(UserError, match="left alone for 7200 s"):
        answers(Engine(url=stand_in.url, model="m"), requests(3))


def test_what_is_under_way_when_the_server_refuses_all_is_kept(stand_in: Any, reply: Any) -> None:
    together, spent, asked = threading.Barrier(12), threading.Event(), requests(100)

    def script(asked: Any) -> Any:
        if asked.prompt == "A dog":
            if asked.before:
                spent.set()
                return reply(status=429, body={"error": {"message": "pay first", "code": "insufficient_quota"}})
        elif asked.prompt:
            together.wait(30)
            number = int(asked.prompt.split()[1])
            if number >= 8:
                return reply(status=429, body={"error": {"message": "pay first", "code": "insufficient_quota"}})
            spent.wait(30)
            time.sleep(0.3)  # an answer behind the one that ends the run
            if number == 7:
                return reply(status=500)
        return None

    stand_in.script = script
    found: list[Any] = []
    with pytest.raises(UserError, match="429: pay first"):
        found += Engine(url=stand_in.url, in_flight=12).complete(iter(asked), DRAWN)  # keeps what came before
    assert {request.caption: completion for request, completion in found} == capitals(7)
    assert stand_in.times_asked() == {request.prompt: 1 for request in asked[:12]}


@pytest.mark.parametrize("limit", [{}, {"rate": 0.01}], ids=["pauses", "waits for its turn"])
def test_what_only_waits_does_not_hold_up_the_end(
    stand_in: Any, reply: Any, limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_PAUSE", 100)
    monkeypatch.setattr(asking, "LONGEST_PAUSE", 100)
    monkeypatch.setattr(asking, "BURST", 3 / 0.01)  # the small one and two more, then one in a hundred seconds
    paused = threading.Event()

    def script(asked: Any) -> Any:
        if asked.prompt == "dog 0":
            paused.set()
            return reply(status=503)
        if asked.prompt == "dog 1":
            paused.wait(30)
            time.sleep(0.2)
            return reply(status=429, headers={"Retry-After": "7200"})
        return None

    stand_in.script = script
    ended: list[str] = []

    def run() -> None:
        with pytest.raises(UserError, match="left alone"):
            list(Engine(url=stand_in.url, model="m", in_flight=3, **limit).complete(requests(9), DRAWN))
        ended.append("in time")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert ended


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("3", 3), ("0.5", 0.5), ("-4", 0), ("soon", None), ("nan", None)]
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert asking._retry_after(header) == seconds


def test_a_busy_server_is_asked_as_long_as_it_serves_others(stand_in: Any, reply: Any) -> None:
    stand_in.script = lambda asked: reply(status=429) if asked.prompt == "dog 1" and asked.before < 9 else None
    assert answers(Engine(url=stand_in.url, retries=1), requests(3)) == capitals(3)


def test_a_request_that_seems_at_fault_is_not_given_up_where_the_server_is_busy(stand_in: Any, reply: Any) -> None:
    faults = [reply(status=500), reply(status=500), reply(status=429), reply(status=429)]
    stand_in.script = lambda asked: faults.pop(0) if asked.prompt == "dog 0" and faults else None
    assert answers(Engine(url=stand_in.url, retries=1), requests(1)) == capitals(1)


def test_a_server_that_is_away_for_longer_than_the_retries_loses_no_request(stand_in: Any, reply: Any) -> None:
    count = iter(range(10**6))
    # The first thing asked is answered; then nothing is, forty times.
    stand_in.script = lambda asked: reply(status=503) if asked.path != "models" and 1 <= next(count) <= 40 else None
    assert answers(Engine(url=stand_in.url, retries=1, in_flight=4), requests(4)) == capitals(4)


def test_a_request_that_fails_while_others_succeed_is_left_for_the_next_run(
    stand_in: Any, reply: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.script = lambda asked: reply(status=500, body={"detail": "overflow"}) if asked.prompt == "dog 1" else None
    found = answers(Engine(url=stand_in.url, retries=3), requests(8))
    assert found == {**capitals(8), "caption 1": None}
    assert stand_in.times_asked()["dog 1"] == 5  # once, three times more, and when the server answered something else
    assert f"{stand_in.url} writes nothing for 'caption 1' (500: overflow)" in capfd.readouterr().err


def test_only_the_first_requests_given_up_are_named(
    stand_in: Any, reply: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.script = lambda asked: reply(cut=0) if asked.prompt.startswith("dog") else None
    assert answers(Engine(url=stand_in.url, retries=0), requests(asking.NAMED + 5)) == dict.fromkeys(
        capitals(asking.NAMED + 5)
    )
    assert capfd.readouterr().err.count("writes nothing for") == asking.NAMED


def test_a_server_that_answers_nothing_but_small_things_is_gone_when_patience_is(stand_in: Any, reply: Any) -> None:
    stand_in.script = lambda asked: reply(status=500) if asked.prompt.startswith("dog") else None
    with pytest.raises(UserError, match=r"answered nothing for .* \(500\): run again .* raise --patience"):
        answers(Engine(url=stand_in.url, patience=0, retries=9), requests(3))


def test_patience_begins_again_with_each_answer(stand_in: Any, reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, later = asking._now, [0.0]
    monkeypatch.setattr(asking, "_now", lambda: real() + later[0])

    def script(asked: Any) -> Any:
        if asked.prompt.startswith("dog") and not asked.before:
            later[0] += 400
            return reply(status=503)
        return None

    stand_in.script = script
    assert answers(Engine(url=stand_in.url, in_flight=1, patience=600), requests(4)) == capitals(4)


def test_a_long_absence_is_told(stand_in: Any, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(asking, "QUIET", 0.05)
    stand_in.stop()
    with pytest.raises(UserError, match="answered nothing"):
        answers(Engine(url=stand_in.url, model="m", patience=0.5), requests(3))
    assert capfd.readouterr().err.count(f"{stand_in.url} does not answer") == 1


# ---- What does not pass


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_does_not_take_is_counted_and_not_asked_again(
    stand_in: Any, reply: Any, status: int
) -> None:
    refusal = reply(status=status, body={"error": {"message": "content\nfilter"}})
    stand_in.script = lambda asked: refusal if asked.prompt == "dog 1" else None
    found = answers(Engine(url=stand_in.url), requests(3))
    assert found == {**capitals(3), "caption 1": Completion("", problem=f"{status}: content filter")}
    assert stand_in.times_asked()["dog 1"] == 1


def test_a_filtered_answer_is_a_problem(stand_in: Any, reply: Any) -> None:
    filtered = reply({"choices": [{"finish_reason": "content_filter", "text": ""}]})
    stand_in.script = lambda asked: filtered if asked.prompt == "dog 1" else None
    assert answers(Engine(url=stand_in.url), requests(2))["caption 1"] == Completion("", problem="content filter")


def test_an_answer_without_counts_or_words_is_an_answer(stand_in: Any, reply: Any) -> None:
    stand_in.script = lambda asked: reply({"choices": [{"message": {"content": None}}]}) if asked.prompt else None
    assert answers(Engine(url=stand_in.url), [Request("c", 0, (("user", "dog"),), 0)]) == {"c": Completion("")}


def test_a_setting_that_the_server_refuses_ends_before_the_first_request(stand_in: Any, reply: Any) -> None:
    stand_in.script = lambda asked: reply(status=400, body={"error": {"message": "no stop"}}) if asked.prompt else None
    with pytest.raises(UserError, match=r"refuses whatever it is asked \(400: no stop\)"):
        answers(Engine(url=stand_in.url), requests(3))
    assert not stand_in.times_asked()


def test_an_unknown_model_is_told_with_those_there_are(stand_in: Any, reply: Any) -> None:
    stand_in.models = ["llama", "qwen"]
    stand_in.script = lambda asked: reply(status=404, body={"error": {"message": "no such"}}) if asked.prompt else None
    with pytest.raises(UserError, match=r"does not have the model 'lama' .*404: no such.* it has llama, qwen"):
        answers(Engine(url=stand_in.url, model="lama"), requests(3))


def test_a_server_with_several_models_wants_a_name(stand_in: Any) -> None:
    stand_in.models = ["qwen", "llama"]
    with pytest.raises(UserError, match=r"has 2 models \(llama, qwen\): name one with --model"):
        Engine(url=stand_in.url).identity()


def test_the_only_model_is_asked_for_once_and_travels_along(stand_in: Any) -> None:
    engine = Engine(url=stand_in.url)
    assert engine.identity() == {"engine": "server", "model": "the-model"}
    answers(pickle.loads(pickle.dumps(engine)), requests(2))
    assert [asked.path for asked in stand_in.asked].count("models") == 1
    assert {asked.body["model"] for asked in stand_in.asked if asked.body} == {"the-model"}


def test_an_address_of_something_else(stand_in: Any, reply: Any) -> None:
    stand_in.script = lambda asked: reply(b"<html>Welcome</html>")
    with pytest.raises(UserError, match="no OpenAI-compatible server's address up to /v1"):
        Engine(url=stand_in.url).identity()
    with pytest.raises(UserError, match="no OpenAI-compatible server's address up to /v1"):
        answers(Engine(url=stand_in.url, model="m"), requests(1))


def test_an_exhausted_quota_ends_at_once(stand_in: Any, reply: Any) -> None:
    spent = reply(status=429, body={"error": {"message": "pay first", "code": "insufficient_quota"}})
    stand_in.script = lambda asked: spent if asked.path != "models" and len(stand_in.times) > 4 else None
    with pytest.raises(UserError, match=r"refuses whatever it is asked \(429: pay first\)"):
        answers(Engine(url=stand_in.url, in_flight=1), requests(20))


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "https://me:hunter2@host/v1", "http://h/v1?k=hunter2", "http://[h/v1"]
)
def test_an_address_has_no_secret(url: str) -> None:
    with pytest.raises(ValidationError) as error:
        Engine(url=url)
    assert "hunter2" not in error.value.errors()[0]["msg"]


# ---- The key


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 501])
@pytest.mark.parametrize("first", [True, False], ids=["from the start", "in the middle"])
def test_the_key_is_in_nothing_we_say(
    stand_in: Any,
    reply: Any,
    status: int,
    first: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    caplog.set_level("DEBUG")
    monkeypatch.setattr(asking, "QUIET", 0)
    message = f"wrong key {KEY} {'x' * 160}{KEY}"  # it stands where a long message is cut, too
    echo = reply(status=status, body={"error": {"message": message}})
    stand_in.script = lambda asked: echo if asked.prompt and (first or asked.prompt == "dog 5") else None
    engine = Engine(url=stand_in.url, key_variable="SERVER_KEY", retries=1, patience=0.2)
    said = ""
    found: list[Any] = []
    try:
        found += engine.complete(requests(12), DRAWN)
    except UserError as error:
        said = "".join(traceback.format_exception(error))
        said += repr(error) + repr(pickle.dumps(error))
    assert {asked.key for asked in stand_in.asked} == {KEY}
    for words in (said, repr(found), repr(engine), repr(pickle.dumps(engine)), *capfd.readouterr(), caplog.text):
        assert KEY[:8] not in words


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--key-variable: the environment variable SERVER_KEY holds no key"):
        answers(Engine(url="http://127.0.0.1:9/v1", model="m", key_variable="SERVER_KEY"), requests(1))
    monkeypatch.setenv("SERVER_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(UserError, match="SERVER_KEY has letters that no key has") as error:
        answers(Engine(url="http://127.0.0.1:9/v1", model="m", key_variable="SERVER_KEY"), requests(1))
    assert KEY not in str(error.value)


NEAR = ["localhost", "127.0.0.2", "[::1]", "10.1.2.3", "172.31.0.1", "192.168.1.1", "gpu-node-07"]
FAR = ["llm.example.com", "8.8.8.8", "172.32.0.1", "192.169.0.1", "[2001:db8::1]", "[fe80::1]", "localhost.example.com"]


@pytest.mark.parametrize("host", FAR)
def test_the_usual_key_does_not_go_unencrypted_to_other_hosts(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://{host}:8000/v1"
    assert Engine(url=url)._key() is None
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UserError, match=rf"OPENAI_API_KEY would go unencrypted to {host.strip('[]')}: ") as error:
        Engine(url=url).identity()
    assert KEY not in str(error.value)
    with pytest.raises(UserError, match="unencrypted"):
        answers(pickle.loads(pickle.dumps(Engine(url=url, model="m"))), requests(1))
    for meant in (Engine(url=f"https://{host}/v1"), Engine(url=url, key_variable="OPENAI_API_KEY")):
        assert pickle.loads(pickle.dumps(meant))._key() == KEY


@pytest.mark.parametrize("host", NEAR)
def test_the_usual_key_goes_to_hosts_nearby(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Engine(url=f"http://{host}:8000/v1")._key() == KEY
    assert Engine(url=f"http://{host.upper()}/v1")._key() == KEY


@pytest.mark.parametrize("written", [KEY, KEY.replace("-", "%2D")])
def test_an_address_with_the_key_in_it_is_refused(stand_in: Any, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    with pytest.raises(UserError, match="--url has the key of the environment variable SERVER_KEY in it") as error:
        Engine(url=f"{stand_in.url}/{written}/v1", key_variable="SERVER_KEY").identity()
    assert KEY[:8] not in str(error.value)
    assert written not in str(error.value)
    assert not stand_in.asked


# ---- Leaving


@pytest.fixture
def deaf(stand_in: Any) -> Any:
    """A stand-in that answers `dog 0` and nothing else before the end of the test."""
    end = threading.Event()
    stand_in.script = lambda asked: end.wait(60) and None if asked.prompt not in ("", "A dog", "dog 0") else None
    yield stand_in
    end.set()


def test_leaving_early_waits_for_nobody(deaf: Any, caplog: pytest.LogCaptureFixture) -> None:
    def take_one() -> None:
        running = Engine(url=deaf.url).complete(requests(50), DRAWN)
        next(iter(running))
        running.close()

    thread = threading.Thread(target=take_one, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    gc.collect()
    assert "Task was destroyed" not in caplog.text


def test_an_interrupt_ends_the_process(deaf: Any) -> None:
    code = f"""
from data_tools._language_models.base import Request, Sampling
from data_tools._language_models.engines.server import Engine
for request, _ in Engine(url={deaf.url!r}).complete([Request("c", 0, f"dog {{i}}", 0) for i in range(9)], Sampling()):
    print("ready", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    try:
        _, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
