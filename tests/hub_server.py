"""A hub on the loopback address that the real client downloads from, and a hub's cache filled by hand."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the folders ``root/OWNER/MODEL`` at the commit ``commit``; ``asked`` are the files asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.commit, self.asked = root, COMMIT, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        owner, model, resolve, revision, *rest = request.path.strip("/").split("?")[0].split("/")
        self.asked.append(f"{request.command} {'/'.join(rest)}")
        file = self.root.joinpath(owner, model, *rest)
        error = None
        if not (self.root / owner / model).is_dir():
            error = "RepoNotFound"
        elif revision not in ("main", self.commit):
            error = "RevisionNotFound"
        elif resolve != "resolve" or not file.is_file():
            error = "EntryNotFound"
        body = b"" if error else file.read_bytes()
        request.send_response(404 if error else 200)
        if error:
            request.send_header("X-Error-Code", error)
        else:
            request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        request.send_header("X-Repo-Commit", self.commit)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if with_body:
            request.wfile.write(body)


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def fill_cache(cache: Path, repository: str, files: Path, commit: str = COMMIT) -> Path:
    """Put the files of a folder where the hub's client looks for those of ``repository``."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(files, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit
