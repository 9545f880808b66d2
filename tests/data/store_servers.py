"""Real servers on loopback that misbehave on demand: HTTP with ranges, and a TCP proxy to stand before an S3 server."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """Serves ``files`` (name -> bytes) with ranges. The switches tell how; the counters what it did."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []  # each next body ends after so many bytes, and the connection with it
        self.errors: list[int] = []  # each next request is answered by this status
        self.absent = 404  # the answer for other names
        self.broken: set[str] = set()  # these files are always answered by 500
        self.stalls: list[int] = []  # each next body pauses for ``stall_seconds`` after so many bytes
        self.stall_seconds = 0.0
        self.trickle = False  # a byte now and then
        self.has_ranges = True
        self.names_ranges = True  # Content-Range, with a part
        self.has_lengths = True
        self.etags = True
        self.ranges: list[tuple[str, str]] = []  # (name, Range header) of each request
        self.sent = 0  # bytes of bodies
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._port = 0
        self.come_back()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._port}/{name}"

    def come_back(self) -> None:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                web.connections += 1
                web._sockets.append(self.request)

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """No more connections, and an end to those there are."""
        self._server.shutdown()
        for connection in [self._server.socket, *self._sockets]:  # forked children have them open too
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._sockets.clear()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, wanted = handler.path.lstrip("/"), handler.headers.get("Range", "")
        self.ranges.append((name, wanted))
        if self.errors or name in self.broken or name not in self.files:
            handler.send_response(500 if name in self.broken else self.errors.pop(0) if self.errors else self.absent)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        data = self.files[name]
        total, body = len(data), data
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if self.has_ranges else None
        if found and int(found[1]) >= total:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{total}")
            body = b""
        elif found:
            start, stop = int(found[1]), min(int(found[2] or total - 1) + 1, total)
            handler.send_response(206)
            if self.names_ranges:
                handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            body = data[start:stop]
        else:
            handler.send_response(200)
        if self.etags:
            handler.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        if self.has_lengths:
            handler.send_header("Content-Length", str(len(body)))
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        self._send(handler, body)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        is_probe = len(body) <= 1  # the question for length and version is left alone
        cut = self.cuts.pop(0) if self.cuts and not is_probe else None
        stall = self.stalls.pop(0) if self.stalls and not is_probe else None
        if self.trickle:
            for byte in body:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        end = len(body) if cut is None else min(cut, len(body))
        at = 0 if stall is None else min(stall, end)
        for part in (body[:at], body[at:end]):
            self.sent += len(part)  # before the reader can have it
            handler.wfile.write(part)
            if stall is not None and part is not body[at:end]:
                time.sleep(self.stall_seconds)
                stall = None
        if cut is not None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Passes TCP on to ``port``, and cuts or slows down what comes back."""

    def __init__(self, port: int) -> None:
        self.cuts: list[int] = []  # each next connection that brings so many bytes is cut there
        self.bytes_per_second = 0.0  # 0: as fast as it can
        self.passed = 0
        self.is_dead = False
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_dead:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        received = 0
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(1 << 16):
                if back:
                    received += len(data)
                    if self.is_dead or (self.cuts and received >= self.cuts[0]):
                        if self.cuts:
                            self.cuts.pop(0)
                        for end in (source, target):
                            end.shutdown(socket.SHUT_RDWR)
                        return
                    self.passed += len(data)
                    if self.bytes_per_second:
                        time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """A real S3 server in this process; its port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()
