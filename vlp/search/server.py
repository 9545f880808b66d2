"""``vlp search --serve``: a page to search with, for the browser of this machine."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, wraps
from typing import Any

import numpy as np

from vlp.search.page import short_name, source, templates
from vlp.search.pictures import TINY, picture_of, small
from vlp.search.requests import LONGEST_TEXT, MOST_RESULTS, UPLOAD_BYTES, Request, Uploads, parsed, vector
from vlp.search.searcher import Hit, Searcher
from vlp.types import UserError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as Http
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    from vlp.search.guard import Guard
except ModuleNotFoundError as error:
    raise UserError("vlp search --serve needs starlette and uvicorn: pip install 'vlp[search]'") from error

FIRST_RESULTS = 24
_BODY_BYTES = 256 << 10  # of a query: far more than its limits allow
_KEPT_PICTURES = 512
_FOREVER = "private, max-age=3600"
Answer = Callable[[Http], Awaitable[Response]]


class TooLargeError(UserError):
    """More was sent than is taken."""


def serve(searcher: Searcher, host: str, port: int) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: the address is taken, or not one of this machine's.
    """
    listening = _listen(host, port)
    for kind in searcher.collection.rows:
        index = searcher.index(kind)
        if index.plan:
            print(f"{kind}: {index.plan.described()}", file=sys.stderr)
    port = listening.getsockname()[1]
    named = socket.gethostname() if host in ("0.0.0.0", "::") else host
    shown = f"[{named}]" if ":" in named else named
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"WARNING: --host {host}: whoever reaches this machine can see the pictures; there is no password",
            file=sys.stderr,
        )
    print(f"http://{shown}:{port}/ - Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        application(searcher, host), log_level="warning", timeout_graceful_shutdown=2, server_header=False
    )
    with contextlib.suppress(KeyboardInterrupt), listening:
        uvicorn.Server(config).run(sockets=[listening])
    print("ended", file=sys.stderr)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} is none: ports go from 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        return listening
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be served on ({error.strerror}): choose another --port, 0 for any"
        ) from error


def application(searcher: Searcher, host: str) -> Starlette:
    """The page, its files, the pictures by number, and what it asks."""
    uploads = Uploads(searcher)
    page = _page(searcher)
    style = source("report.css") + source("search.css")
    script = source("search.js")
    thumbnail = lru_cache(maxsize=_KEPT_PICTURES)(lambda kind, number: _thumbnail(searcher, kind, number))

    async def picture(http: Http) -> Response:
        kind, number = http.path_params["kind"], http.path_params["number"]
        data = await run_in_threadpool(thumbnail, kind, number)
        return Response(data, media_type="image/webp", headers={"Cache-Control": _FOREVER})

    async def search(http: Http) -> Response:
        body = await _body(http, _BODY_BYTES, "The query is too long: shorten it.")
        try:
            request = parsed(json.loads(body))
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError("The query is no JSON: reload the page.") from error
        return JSONResponse(await run_in_threadpool(_answer, request, searcher, uploads))

    async def upload(http: Http) -> Response:
        data = await _body(http, UPLOAD_BYTES, f"A picture may have {UPLOAD_BYTES >> 20} MB: take a smaller one.")
        return JSONResponse({"token": await run_in_threadpool(uploads.add, data)})

    return Starlette(
        routes=[
            Route("/", lambda _: HTMLResponse(page)),
            Route("/style.css", lambda _: Response(style, media_type="text/css")),
            Route("/search.js", lambda _: Response(script, media_type="text/javascript")),
            Route("/picture/{kind}/{number:int}", _in_sentences(picture)),
            Route("/api/search", _in_sentences(search), methods=["POST"]),
            Route("/api/upload", _in_sentences(upload), methods=["POST"]),
        ],
        middleware=[Middleware(Guard, host=host)],
    )


def _page(searcher: Searcher) -> str:
    rows = searcher.collection.rows
    return (
        templates()
        .get_template("search.html.j2")
        .render(
            name=searcher.collection.directory.resolve().name,
            counts=" · ".join(f"{len(own):,} {kind}" for kind, own in rows.items()),
            model=short_name(searcher.collection.meta["model"]),
            kinds=list(rows),
            limits={
                "first": FIRST_RESULTS,
                "most": MOST_RESULTS,
                "text": LONGEST_TEXT,
                "bytes": UPLOAD_BYTES,
                "tiny": TINY,
            },
        )
    )


def _thumbnail(searcher: Searcher, kind: str, number: int) -> bytes:
    rows = searcher.collection.rows.get(kind)
    if rows is None or not 0 <= number < len(rows):
        raise LookupError
    return small(picture_of(rows[number]))


def _answer(request: Request, searcher: Searcher, uploads: Uploads) -> dict[str, Any]:
    start = time.perf_counter()
    rows = searcher.collection.of(request.find)
    query_D = vector(request, searcher, uploads)
    if query_D is None:
        numbers = np.unique(np.linspace(0, len(rows) - 1, min(request.top, len(rows))).astype(int))
        hits = [Hit(rows[int(number)], float("nan")) for number in numbers]
    else:
        own = request.row.number if request.row is not None and request.row.kind == request.find else None
        hits = searcher.find(query_D, request.find, request.top, leave_out=own)
    milliseconds = 1000 * (time.perf_counter() - start)
    cut = [text for text in request.texts if searcher.is_cut(text)]
    return {
        "find": request.find,
        "total": len(rows),
        "sample": query_D is None,
        "milliseconds": round(milliseconds, 2),
        "notes": [f"the model reads no more than {searcher.context} tokens of a text"] if cut else [],
        "results": [_result(hit, scored=query_D is not None) for hit in hits],
    }


def _result(hit: Hit, scored: bool) -> dict[str, Any]:
    row = hit.row
    score = round(hit.score, 6) if scored else None
    return {"kind": row.kind, "number": row.number, "key": row.key, "text": row.text, "score": score}


async def _body(http: Http, most: int, sentence: str) -> bytes:
    """What was sent, of which no more than ``most`` bytes are read."""
    parts, length = [], 0
    async for part in http.stream():
        length += len(part)
        if length > most:
            raise TooLargeError(sentence)
        parts.append(part)
    return b"".join(parts)


def _in_sentences(answer: Answer) -> Answer:
    """Mistakes as JSON with a sentence for the page."""

    @wraps(answer)
    async def wrapped(http: Http) -> Response:
        try:
            return await answer(http)
        except TooLargeError as error:
            return JSONResponse({"error": str(error)}, status_code=413, headers={"Connection": "close"})
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except LookupError:
            return JSONResponse({"error": "There is no such picture."}, status_code=404)
        except ClientDisconnect:
            return Response(status_code=400)

    return wrapped
