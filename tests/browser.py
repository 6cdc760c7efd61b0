"""A Chromium without a window, driven through its DevTools protocol, with the network off."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-extensions --remote-debugging-port=0"
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
SECONDS = 60  # to wait for an answer; the machine may be busy


class Browser:
    """One page, or a frame of it after `enter_frame`.

    `errors` collects what the console complains of, `requests` the addresses that the page or the frame asks for.
    JupyterLab around a frame asks its own server for something every few seconds, which does not count.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900)) -> None:
        self.folder, self.size = folder, size
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.number = 0
        self.frames: list[str] = []  # sessions of frames that have a process of their own, as sandboxed ones do

    def __enter__(self) -> Self:
        options = [f"--user-data-dir={self.folder}", "--window-size={},{}".format(*self.size)]
        command = [str(CHROMIUM), *FLAGS.split(), NO_NETWORK, *options, "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = self.folder / "DevToolsActivePort"
        self.wait_until(lambda: found.is_file() and found.read_text().count("\n") > 0)
        port, path = found.read_text().split()
        address = f"ws://127.0.0.1:{port}"
        self.socket = websocket.create_connection(address + path, timeout=SECONDS, suppress_origin=True)
        self.session = ""
        target = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self._listen()
        return self

    def _listen(self) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(SECONDS)

    def wait_until(self, is_done: Callable[[], object]) -> None:
        """Wait until a function returns something true."""
        end = time.monotonic() + SECONDS
        while not is_done():
            assert time.monotonic() < end, f"Chromium: nothing in {SECONDS} s"
            time.sleep(0.05)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event["method"] == "Target.attachedToTarget":
            self._attached(details["sessionId"], details["targetInfo"]["type"])
        elif event["method"] == "Network.requestWillBeSent":
            self.requests += [details["request"]["url"]] if event.get("sessionId", "") == self.session else []
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(details["entry"]))
        elif event["method"] == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.errors.append(str(details["args"]))

    def _attached(self, session: str, kind: str) -> None:
        """Keep a frame for `enter_frame`; let others, such as workers, go on at once."""
        if kind == "iframe":
            self.frames.append(session)
        elif self.session:
            resume = {"id": 0, "method": "Runtime.runIfWaitingForDebugger", "sessionId": session}
            self.socket.send(json.dumps(resume))

    def open(self, page: Path | str) -> None:
        """Open a file or an address."""
        self.call("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)

    def enter_frame(self) -> None:
        """Go on in the page's sandboxed frame, which waits until it is listened to."""
        self.wait_until(lambda: self.value("true") and self.frames)
        self.session = self.frames.pop()
        self._listen()
        self.call("Runtime.runIfWaitingForDebugger")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        self.wait_until(lambda: self.value(expression))

    def key(self, key: str) -> None:
        """Press a key, such as "o" or "ArrowRight", wherever the focus is."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float, **details: Any) -> None:
        """Send an event of the mouse: "mousePressed", "mouseMoved", "mouseReleased" or "mouseWheel"."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **details)

    def drag(self, start: tuple[float, float], by: tuple[float, float], **details: Any) -> None:
        """Drag with the left button, or another one."""
        details = {"button": "left", "clickCount": 1} | details
        end = start[0] + by[0], start[1] + by[1]
        self.mouse("mousePressed", *start, **details)
        self.mouse("mouseMoved", (start[0] + end[0]) / 2, (start[1] + end[1]) / 2, buttons=1, **details)
        self.mouse("mouseMoved", *end, buttons=1, **details)
        self.mouse("mouseReleased", *end, **details)

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what the page shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
