"""Drives chromium, headless, through the pipe of its DevTools protocol: real clicks and keys."""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
KEYS = {" ": ("Space", 32), "Enter": ("Enter", 13), "ArrowRight": ("ArrowRight", 39)}


class Browser:
    """A browser with one profile, whose tabs share what pages keep."""

    def __init__(self):
        found = shutil.which("chromium") or shutil.which("google-chrome")
        if found is None:
            pytest.skip("needs the browser chromium to open the page in")
        self.profile = tempfile.mkdtemp(prefix="profile-")
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        # The protocol's ends are the descriptors 3 and 4 of the browser.
        script = f'exec 3<&{reads} 4>&{writes}; exec "$0" "$@"'
        command = ["bash", "-c", script, found, *FLAGS, f"--user-data-dir={self.profile}"]
        self._process = subprocess.Popen(
            command, pass_fds=(reads, writes), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(reads)
        os.close(writes)
        self._buffer = b""
        self._ids = itertools.count(1)
        self.events = []

    def call(self, method, session=None, **params):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def _read(self):
        while b"\0" not in self._buffer:
            piece = os.read(self._from, 2**20)
            assert piece, "the browser ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, address, **window):
        return Tab(self, address, **window)

    def close(self):
        self.call("Browser.close")
        self._process.wait(timeout=30)
        shutil.rmtree(self.profile, ignore_errors=True)


class Tab:
    def __init__(self, browser, address, width=1000, height=800, before=""):
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Network.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        if before:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        self.go(address)

    def call(self, method, **params):
        return self._browser.call(method, self._session, **params)

    def go(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && !!document.querySelector('h1')")

    def run(self, script):
        """The value of a JavaScript expression, awaited."""
        done = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            replMode=True,
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition}: {self.text()}"
            time.sleep(0.02)

    def text(self):
        return self.run("document.body.innerText")

    def click(self, selector, times=1):
        """Clicks the middle of an element, as a mouse does."""
        found = f"document.querySelector({json.dumps(selector)})"
        box = self.run(
            f"(() => {{ const e = {found}; if (!e) return null; e.scrollIntoView({{block: 'center',"
            " behavior: 'instant'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        assert box, f"no {selector}: {self.text()}"
        for n in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent",
                    type=kind,
                    x=box[0],
                    y=box[1],
                    button="left",
                    clickCount=n,
                )

    def press(self, key):
        code, number = KEYS.get(key, (f"Digit{key}", ord(key[0])))
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        about = dict(key=key, code=code, windowsVirtualKeyCode=number)
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def addresses(self):
        """Addresses that the tab asked for so far."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event.get("sessionId") == self._session
            and event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path):
        import base64

        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        pathlib.Path(path).write_bytes(base64.b64decode(shot["data"]))
