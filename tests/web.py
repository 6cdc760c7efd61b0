"""A web server on this computer: files, Range requests, connections that break, and the calls of Kaggle's client."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CURRENT_VERSION = 3


class Site:
    """What a server serves, how it fails, and what it was asked.

    Attributes
    ----------
    folder
        The files, served under their names.
    ranges
        Whether Range requests are answered; otherwise the whole file is.
    broken
        Status code or "cut" -> how many of the next requests for a part of a file fail so: a status in place of the
        answer, or a connection that ends in the middle.
    intact
        Requests of one address before the first that fails.
    expires_after
        Requests of one address after which it is refused with status 403.
    refused
        Path of an API call -> status code of its answer.
    requests
        How often each path was requested.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges = folder, True
        self.broken: Counter[int | str] = Counter()
        self.intact, self.expires_after = 0, 10**6
        self.refused: dict[str, int] = {}
        self.requests: Counter[str] = Counter()
        self.sent = 0  # bytes of files
        self.url = ""
        self.lock = threading.Lock()


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Serve a folder at `site.url` until the block ends."""
    site = Site(folder)
    server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:  # such as a client that does not wait for the rest of an answer
        pass


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:  # Kaggle's API
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = self.path.rpartition("/")[2]
        self.site.requests[call] += 1
        if status := self.site.refused.get(call):
            self.answer(status, b'{"code": %d, "message": "no"}' % status, **{"Content-Type": "application/json"})
        elif call == "GetDataset":
            version = b'{"currentVersionNumber": %d}' % CURRENT_VERSION
            self.answer(200, version, **{"Content-Type": "application/json"})
        else:  # the archive itself is elsewhere
            self.answer(302, b"", Location=f"{self.site.url}/archive.zip")

    def do_GET(self) -> None:
        self.site.requests[self.path] += 1
        file = self.site.folder / self.path.partition("?")[0].lstrip("/")
        expired = self.site.requests[self.path] > self.site.expires_after
        if expired or not file.is_file():
            self.answer(403 if expired else 404, b"")
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if self.site.ranges else None
        if not asked:
            self.answer(200, content, **{"Accept-Ranges": "bytes"} if self.site.ranges else {})
            return
        with self.site.lock:
            kinds = [kind for kind, count in self.site.broken.items() if count > 0]
            failure = kinds[0] if kinds and self.site.requests[self.path] > self.site.intact else ""
            self.site.broken[failure] -= bool(failure)
        if isinstance(failure, int):
            self.answer(failure, b"")
            return
        first = int(asked[1]) if asked[1] else len(content) - int(asked[2])
        if first >= len(content):
            self.answer(416, b"")
            return
        last = min(int(asked[2]), len(content) - 1) if asked[1] and asked[2] else len(content) - 1
        part = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.answer(206, content[first : last + 1], failure == "cut", **part)

    def answer(self, status: int, body: bytes, is_cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        body = body[: len(body) // 2] if is_cut else body
        self.wfile.write(body)
        self.site.sent += len(body)
        if is_cut:
            self.close_connection = True
