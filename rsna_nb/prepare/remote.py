"""A file on a web server that is read in parts, by HTTP Range requests."""

import io
import time

import requests

TIMEOUTS = 10, 20  # seconds to connect, and to wait for the next bytes
PATIENCE = 60  # seconds of failures of one part: a worker process has 120 for a file
LONGEST_PAUSE = 8  # seconds between two tries
AHEAD = 2**16  # bytes that are read at least


class ArchiveError(Exception):
    """An archive cannot be read. The message names it and says what to do."""


class RemoteFile(io.RawIOBase):
    """A file on a web server, as `zipfile` reads files: it seeks, and reads parts.

    Parameters
    ----------
    url
        Its address. Its query is left out of messages, because it may contain credentials.

    Raises
    ------
    ArchiveError
        If the server refuses, does not answer, or does not answer Range requests; also while reading.
    """

    def __init__(self, url: str) -> None:
        self.url, self.name = url, url.partition("?")[0]
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"  # a compressed answer has other positions
        self.position, self.start, self.part = 0, 0, b""
        self.size = 1
        self.fetch(0, 1)  # learns the size

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position. Nothing is requested."""
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, fewer only at the end of the file."""
        first = min(self.position, self.size)
        end = self.size if size < 0 else min(first + size, self.size)
        if not self.start <= first <= end <= self.start + len(self.part):
            self.fetch(first, max(end, first + AHEAD))
        self.position = end
        return self.part[first - self.start : end - self.start]

    def fetch(self, first: int, end: int) -> None:
        """Request the bytes from `first` to before `end` and keep them for the reads that follow.

        A request that fails, or is cut off, is repeated for what is missing, for up to a minute.
        """
        content, end = bytearray(), min(end, self.size)
        pause, deadline = 0.5, time.monotonic() + PATIENCE
        while len(content) < end - first:
            try:
                self._receive(content, first + len(content), end)
            except requests.RequestException as error:
                if time.monotonic() > deadline:
                    raise ArchiveError(f"{self.name} does not answer: {_cause(error)}; rerun to continue") from error
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self.start, self.part = first, bytes(content)

    def _receive(self, content: bytearray, first: int, end: int) -> None:
        """Append one answer's bytes, whatever arrives of them."""
        part = {"Range": f"bytes={first}-{end - 1}"}
        with self.session.get(self.url, headers=part, stream=True, timeout=TIMEOUTS) as answer:
            if answer.status_code == 429 or answer.status_code >= 500:  # busy: another try may succeed
                answer.raise_for_status()
            if answer.status_code == 200:
                raise ArchiveError(
                    f"{self.name}: the server sends whole files only (no Range requests): download the archive and "
                    "give its path"
                )
            if answer.status_code != 206:
                raise ArchiveError(
                    f"{self.name}: the server refuses with status {answer.status_code}: rerun with a new link if this "
                    "one has expired"
                )
            place, _, size = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if not place.startswith(f"{first}-") or not size.isdigit() or (self.part and int(size) != self.size):
                raise ArchiveError(f"{self.name}: the archive has changed, or the server sends another part: rerun")
            self.size = int(size)
            before = len(content)
            for block in answer.iter_content(2**18):
                content += block
            if len(content) == before:
                raise requests.ConnectionError("an empty answer")


def _cause(error: BaseException) -> str:
    """The innermost reason of an error of requests, which wraps several."""
    while error.args and isinstance(inner := getattr(error.args[0], "reason", error.args[0]), BaseException):
        error = inner
    return f"{type(error).__name__}: {error}"
