"""What the page's server answers, to its own page and to others."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from vlp.search.requests import MOST_TERMS, UPLOAD_BYTES

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def ask(server: Any) -> Callable[..., Answer]:
    """``ask(method, path, body, headers)``: status, headers, content."""
    port = urlsplit(server.address).port

    def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    return ask


@pytest.fixture
def query(ask: Callable[..., Answer]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def query(**content: Any) -> tuple[int, dict[str, Any]]:
        status, _, answer = ask("POST", "/api/search", json.dumps(content).encode())
        return status, json.loads(answer)

    return query


def test_the_page_is_all_ours(ask) -> None:
    status, headers, page = ask("GET", "/")
    assert status == 200
    assert b"http" not in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for path in ("/style.css", "/search.js"):
        status, _, content = ask("GET", path)
        assert status == 200
        assert b"http://" not in content
        assert b"https://" not in content


def test_only_this_machine_is_listened_to_by_default(server: Any) -> None:
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", urlsplit(server.address).port), timeout=5)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:3", 200),
        ("", 403),
        ("[", 403),
    ],
)
def test_a_foreign_name_is_refused(ask, host: str, status: int) -> None:
    """A site whose name resolves to this machine would else read what is here."""
    for path in ("/", "/picture/pictures/0", "/nowhere"):
        answered, _, content = ask("GET", path, Host=host)
        assert (answered == 403) == (status == 403), path
        assert status != 403 or b"does not answer under the name" in content


def test_a_foreign_page_is_refused(ask, server: Any) -> None:
    body = b'{"text": "a dog"}'
    assert ask("POST", "/api/search", body, Origin="http://evil.example")[0] == 403
    assert ask("POST", "/api/search", body, Origin="null")[0] == 403
    assert ask("POST", "/api/search", body, Origin=server.address.rstrip("/"))[0] == 200


def test_pictures_are_had_by_number_only(ask, encoded: Callable[[int], bytes]) -> None:
    status, headers, content = ask("GET", "/picture/pictures/3")
    assert (status, headers["content-type"]) == (200, "image/webp")
    theirs = Image.open(io.BytesIO(encoded(3))).convert("RGB")
    assert Image.open(io.BytesIO(content)).convert("RGB").tobytes() == theirs.tobytes()
    for path in (
        "pictures/43",
        "pictures/-1",
        "pictures/x",
        "nothing/1",
        "pictures/..%2f..%2fetc%2fpasswd",
        "../meta.json",
    ):
        assert ask("GET", f"/picture/{path}")[0] == 404, path
    assert ask("GET", "/picture/pictures/99999999999999999999999")[0] == 404


def test_a_query_without_anything_gives_rows_evenly(query) -> None:
    status, found = query(top=5)
    assert status == 200
    assert found["sample"]
    assert [one["number"] for one in found["results"]] == [0, 10, 21, 31, 42]
    assert {one["score"] for one in found["results"]} == {None}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"text": "x" * 1001}, "1,001 characters"),
        ({"text": "  "}, "A text is empty"),
        ({"plus": ["y" * 2000]}, "2,000 characters"),
        ({"plus": ["a"] * (MOST_TERMS + 1)}, f"more than {MOST_TERMS} terms"),
        ({"plus": ["a"], "minus": ["a"]}, "are the same for this model"),
        ({"text": "a", "row": {"kind": "pictures", "number": 1}}, "Only one of a text and a picture"),
        ({"row": {"kind": "pictures", "number": 43}}, "only 43 pictures"),
        ({"row": {"kind": "pictures", "number": -1}}, "number"),
        ({"row": {"kind": "pictures", "number": 1, "path": "/etc/passwd"}}, "path"),
        ({"upload": "0123"}, "no longer in memory"),
        ({"find": "secrets"}, "find"),
        ({"top": 100_000}, "top"),
        ({"weight": 1e9}, "weight"),
        ({"shard": "x"}, "unknown key 'shard'"),
        ([], "must be a mapping"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(ask, content: Any, sentence: str) -> None:
    status, _, answer = ask("POST", "/api/search", json.dumps(content).encode())
    assert status == 400
    assert sentence in json.loads(answer)["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"weight": NaN}'])
def test_what_is_no_query_is_a_sentence(ask, body: bytes) -> None:
    status, _, answer = ask("POST", "/api/search", body)
    assert status == 400
    assert json.loads(answer)["error"]


def test_too_much_is_refused_unread(ask) -> None:
    status, _, answer = ask("POST", "/api/search", b"x" * (1 << 20))
    assert (status, json.loads(answer)["error"]) == (413, "The query is too long: shorten it.")
    status, _, answer = ask("POST", "/api/upload", b"x" * (UPLOAD_BYTES + 1))
    assert status == 413
    assert "A picture may have 16 MB" in json.loads(answer)["error"]


def test_an_upload_is_named_by_its_bytes_and_found_again(ask, query, encoded: Callable[[int], bytes]) -> None:
    status, _, answer = ask("POST", "/api/upload", encoded(11))
    assert status == 200
    assert ask("POST", "/api/upload", encoded(11))[2] == answer
    _, found = query(upload=json.loads(answer)["token"], top=1)
    assert found["results"][0]["number"] == 11
    status, _, answer = ask("POST", "/api/upload", b"<svg onload=alert(1)>")
    assert status == 400
    assert "The picture cannot be used" in json.loads(answer)["error"]
    flood = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(flood, "PNG")
    status, _, answer = ask("POST", "/api/upload", flood.getvalue())
    assert status == 400
    assert "huge picture" in json.loads(answer)["error"]


def test_a_picture_that_has_gone_is_a_sentence(embeddings: Path, ask) -> None:
    photo = embeddings.parent / "photos" / "42.png"
    photo.rename(photo.with_suffix(".away"))
    try:
        status, _, answer = ask("GET", "/picture/pictures/42")
    finally:
        photo.with_suffix(".away").rename(photo)
    assert status == 400
    assert "is no longer there" in json.loads(answer)["error"]


def test_a_busy_port_is_named(embeddings: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from vlp.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["search", str(embeddings), "--serve", "--port", str(urlsplit(server.address).port)])
    assert "choose another --port" in capsys.readouterr().err
