"""A headless Chromium, driven through WebDriver, with the requests and complaints of a page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tests.services.nodes import wait_until
from tests.services.object_store import free_ports

_PROGRAMS = ("chromium", "chromedriver")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-extensions",
)  # fmt: skip
_TIMEOUT_S = 120  # of one command; a busy machine is slow to start a browser


def why_unavailable() -> str | None:
    """The programs that are not installed, or None."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Browser:
    """One window with a new profile, which is deleted at the end."""

    def __enter__(self) -> Browser:
        self._profile = tempfile.mkdtemp(prefix="browser-")
        [port] = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--silent"], stdout=subprocess.DEVNULL
        )
        try:
            wait_until(self._is_ready, timeout_s=_TIMEOUT_S, every_s=0.1)
            options = {
                "args": [*_FLAGS, f"--user-data-dir={self._profile}", "--window-size=1280,900"],
                "perfLoggingPrefs": {"enableNetwork": True},
            }
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
            started = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{started['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send("DELETE", self._session)
        finally:
            self._end()

    def open(self, page: Path | str) -> None:
        """Load a file or a URL and forget the requests and complaints of earlier pages."""
        self.requests()
        self.complaints()
        url = page if isinstance(page, str) else page.as_uri()
        self._send("POST", f"{self._session}/url", {"url": url})

    def emulate(self, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show pages as on a screen of that size whose user prefers a colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
        self._command("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def screenshot(self) -> bytes:
        """The complete page as a PNG."""
        wanted = {"captureBeyondViewport": True, "format": "png"}
        return base64.b64decode(self._command("Page.captureScreenshot", wanted)["data"])

    def print(self) -> bytes:
        """The page as a PDF on A4 paper."""
        size = {"page": {"width": 21.0, "height": 29.7}}
        return base64.b64decode(self._send("POST", f"{self._session}/print", size))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        script = {"script": f"return {expression};", "args": []}
        return self._send("POST", f"{self._session}/execute/sync", script)

    def press(self, selector: str, key: str) -> None:
        """Focus the first element of that selector and press a key."""
        self._send("POST", f"{self._find(selector)}/value", {"text": key})

    def click(self, selector: str) -> None:
        """Click in the middle of the first element of that selector."""
        self._send("POST", f"{self._find(selector)}/click", {})

    def accessible_name(self, selector: str) -> str:
        """The name that a screen reader reads for the first element of that selector."""
        return self._send("GET", f"{self._find(selector)}/computedlabel")

    def requests(self) -> list[str]:
        """The requested URLs since the last call, except those inside the page and the browser."""
        entries = (json.loads(entry["message"])["message"] for entry in self._log("performance"))
        urls = [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "chrome:"))]

    def complaints(self) -> list[str]:
        """The lines on the console since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        """One command of the DevTools protocol."""
        content = {"cmd": name, "params": parameters}
        return self._send("POST", f"{self._session}/goog/cdp/execute", content)

    def _find(self, selector: str) -> str:
        """The path of the first element of that selector."""
        query = {"using": "css selector", "value": selector}
        [element] = self._send("POST", f"{self._session}/element", query).values()
        return f"{self._session}/element/{element}"

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return self._send("POST", f"{self._session}/se/log", {"type": kind})

    def _is_ready(self) -> bool:
        try:
            return self._send("GET", "/status")["ready"]
        except OSError:
            return False

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)["value"]

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait(_TIMEOUT_S)
        shutil.rmtree(self._profile, ignore_errors=True)
