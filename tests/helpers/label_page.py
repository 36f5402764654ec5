"""What a person does with `costl label` and its page: starts and kills the server, and labels by the keyboard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from in_browser import Page
from preloaded import Preloaded

ROOT = Path(__file__).parents[2]
READY = "return !!facts && (video.readyState > 1 || player.pictures)"
LABELS = "return labels().map(label => [label.answer.query, ...label.answer.windows.map(span)])"
SAVED = "return $('#saved').textContent === 'Saved' && !document.querySelector('[data-saved=false]')"


class LabelServer:
    """`costl label` on a folder, which can be killed and started again on its port."""

    def __init__(self, home: Path, weights: Path):
        self.home, self._weights, self.port = home, weights, 0
        self.labels = home / "videos" / "labels.jsonl"
        self.start()

    def start(self) -> None:
        command = ["-m", "costl", "label", "--videos", "videos", "--port", self.port, "--weights", self._weights]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.home / "cache")}
        self.process = Preloaded(command, cwd=self.home, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.strip("/").rpartition(":")[2])

    def end(self, number: signal.Signals) -> str:
        """Ends the process; -> what it printed."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=120)[0]

    def close(self) -> None:
        """Ends the process if it runs."""
        if self.process.poll() is None:
            self.end(signal.SIGINT)

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.labels.read_text(encoding="utf-8").splitlines()]


class LabelPage(Page):
    """What a person does to the page."""

    def __init__(self, browser, server: LabelServer):
        super().__init__(browser)
        self.server = server

    def open(self, video: str) -> None:
        self.browser.driver.get(f"{self.server.address}?video={video}")
        self.browser.wait(lambda: self.browser.run(READY), f"{video} cannot be seen")

    def seek(self, second: float) -> None:
        """Moves the playhead by its keys: whole seconds from the start of the video."""
        from selenium.webdriver.common.keys import Keys

        self.keys(Keys.HOME, *[Keys.ARROW_RIGHT] * int(second))
        self.browser.wait(lambda: abs(self.browser.run("return player.now") - second) < 0.02, f"it is not at {second} s")

    def mark(self, start_s: float, end_s: float, *sentence: str) -> None:
        """Labels a moment."""
        from selenium.webdriver.common.keys import Keys

        self.seek(start_s)
        self.keys("i")
        self.seek(end_s)
        self.keys("o", Keys.ENTER, *sentence, Keys.ENTER)

    def wait_for(self, script: str, expected: object) -> None:
        """Waits until a script returns a value and every change is saved."""
        found = lambda: self.browser.run(script)  # noqa: E731
        self.browser.wait(lambda: found() == expected and self.browser.run(SAVED), f"{script}: not {expected}")

    def text(self, selector: str) -> str:
        return self.browser.run("return document.querySelector(arguments[0]).textContent", selector)
