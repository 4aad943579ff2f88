"""A browser without a window, told what to do by the DevTools protocol over two pipes: no package, and the clock runs."""

import base64
import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """A page that is open.

    Attributes:
      errors: what its scripts raised.
    """

    def __init__(self, reads: int, writes: int):
        self._in, self._out, self._read = reads, writes, b""
        self._number, self._session = 0, None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Page.enable")

    def call(self, method: str, **arguments):
        """The protocol's answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._out, text) :]
        while True:
            said = json.loads(self._message())
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["params"])[:600])
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]

    def _message(self) -> bytes:
        while b"\0" not in self._read:
            if not select.select([self._in], [], [], 60)[0]:
                raise TimeoutError("the browser has said nothing for a minute")
            got = os.read(self._in, 1 << 16)
            if not got:
                raise RuntimeError("the browser has ended")
            self._read += got
        message, _, self._read = self._read.partition(b"\0")
        return message

    def value(self, expression: str):
        """The value of an expression, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:600])
        return found["result"].get("value")

    def open(self, url: str, ready: str, seconds: int = 60):
        """Open an address, and wait until an expression is true."""
        self.call("Page.navigate", url=url)
        wait = f"new Promise((done) => setTimeout(() => done(Boolean({ready})), 100))"
        for _ in range(10 * seconds):
            if self.value(wait):
                return
        raise RuntimeError(f"not ready in {seconds} seconds: {self.value('document.body.innerText')} {self.errors}")

    def mouse(self, kind: str, x: float, y: float):
        """Press, move or release the mouse."""
        held = 0 if kind == "Released" else 1
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=held, clickCount=1)

    def type(self, text: str):
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, width: int = 900, height: int = 900):
        """Save what is seen."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def opened():
    """A `Page` of a browser that is ended in the end."""
    (reads, to_browser), (from_browser, writes) = os.pipe(), os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        words = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={home}",
        ]
        words += ["--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "--disable-background-networking"]
        # The browser reads its third file, and writes its fourth.
        words = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "-", *words]
        process = subprocess.Popen(words, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(reads)
        os.close(writes)
        try:
            yield Page(from_browser, to_browser)
        finally:
            process.terminate()
            process.wait(30)
            os.close(from_browser)
            os.close(to_browser)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path):
    """The address of a folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
