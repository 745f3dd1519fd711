"""Chromium for the tests, driven by playwright-core in a Node process, driver.js, which takes commands."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

HERE = Path(__file__).parent
TIMEOUT = 20.0  # seconds that any single command may take
PAGE_TIMEOUT = 15.0  # seconds that a page may take to load, and each thing that page.js waits for


class BrowserError(Exception):
    """A command failed, in the browser or on the way to it."""


@dataclass(frozen=True)
class Socket:
    """A WebSocket connection as DevTools shows it."""

    url: str
    request: dict[str, str]
    status: int
    """Of the response; 0: there was none."""
    response: dict[str, str]
    errors: list[str]
    closed: bool

    @property
    def by_upgrade(self) -> bool:
        """Whether it was an upgrade of HTTP/1.1, which alone has a key to answer; 200 is the answer of HTTP/2."""
        names = {name.lower() for name in self.response}
        assert ("sec-websocket-accept" in names) == (self.status == 101)
        return self.status == 101


class Page:
    """A page in a context of its own. Ends with its browser, or before."""

    def __init__(self, browser: Browser, number: int, url: str, inject: bool) -> None:
        self._browser = browser
        self._number = number
        self.status: int = self._command("open", url=url, inject=inject, timeout=PAGE_TIMEOUT * 1000)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        return self._command("evaluate", expression=expression)

    def call(self, verb: str, **arguments: Any) -> Any:
        """Call a function of page.js."""
        return self.evaluate(f"clients.{verb}({json.dumps(arguments)})")

    @property
    def said(self) -> list[str]:
        """What the browser's console shows: errors of the page and refused connections too."""
        said: list[str] = self._command("report")["said"]
        return said

    @property
    def sockets(self) -> list[Socket]:
        return [Socket(**one) for one in self._command("report")["sockets"]]

    def close(self) -> None:
        self._command("shut")

    def _command(self, verb: str, **arguments: Any) -> Any:
        return self._browser.command(verb, page=self._number, **arguments)


class Browser:
    """A headless Chromium with an empty profile. ``arguments``: further ones of its command line.

    Profile, caches and sockets lie in a folder that goes with it, and so does every process that it started.
    """

    def __init__(self, node: str, chromium: str, arguments: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mqttc-browser-")
        home = self._folder.name
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment = {**kept, "HOME": home, "TMPDIR": home}
        self._node = subprocess.Popen(
            [node, "driver.js"], cwd=HERE, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._numbers = itertools.count(1)
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="browser's answers")
        self._reader.start()
        try:
            self.command("launch", executable=chromium, args=arguments)
        except BaseException:
            self.close()
            raise

    def open(self, url: str, *, inject: bool = True) -> Page:
        """A new page. ``inject``: with MQTT.js and page.js, and without the page's own security policy, which lets no script run."""
        return Page(self, next(self._numbers), url, inject)

    def command(self, verb: str, **arguments: Any) -> Any:
        number = next(self._numbers)
        assert self._node.stdin is not None
        self._node.stdin.write(json.dumps({"number": number, "verb": verb, **arguments}) + "\n")
        self._node.stdin.flush()
        try:
            # An answer that came too late for its own command is passed over.
            while (answer := self._answers.get(timeout=TIMEOUT))["number"] != number:
                pass
        except queue.Empty:
            raise BrowserError(f"no answer to {verb} {arguments}") from None
        if answer["error"] is not None:
            raise BrowserError(f"{verb} {arguments}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End it, and fail if a process does not go by itself."""
        assert self._node.stdin is not None and self._node.stdout is not None
        self._node.stdin.close()
        _, left = psutil.wait_procs(list(self._processes()), TIMEOUT)
        for process in left:
            process.kill()
        self._node.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        self._node.stdout.close()
        self._folder.cleanup()
        assert not left, f"still there: {left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._node.stdout is not None
        for line in self._node.stdout:
            self._answers.put(json.loads(line))

    def _processes(self) -> Iterator[psutil.Process]:
        """Every process that has inherited our folder, whoever is its parent now."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR") == self._folder.name:
                    yield process
            except psutil.Error:
                continue
