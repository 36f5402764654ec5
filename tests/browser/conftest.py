"""A real browser for the tests marked `browser`: Chromium without a window, and what it asked for and complained of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
)
PATIENCE_S = 60.0


class Browser:
    """One window. `driver` is selenium's; the rest is what tests ask for again and again."""

    def __init__(self, driver: Any):
        self.driver = driver
        self._requests: list[str] = []
        self._complaints: list[str] = []

    def wait(self, what: Callable[[], Any], why: str, patience_s: float = PATIENCE_S) -> Any:
        """What `what` gives as soon as it gives something; fails with `why` when it takes too long."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, patience_s, 0.1, ignored).until(lambda _: what(), why)

    def find(self, selector: str) -> Any:
        """The first element that is shown, waited for."""
        return self.wait(lambda: next((e for e in self.all(selector) if e.is_displayed()), None), f"no {selector}")

    def all(self, selector: str) -> list[Any]:
        """Every element of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def screenshot(self, path: Path, *, width: int, height: int = 0) -> None:
        """The page as a window of this width shows it, in full unless `height` is given."""
        size = {"width": width, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": height or 900})
        tall = height or int(self.run("return document.documentElement.scrollHeight"))
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": tall})
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))

    def hosts(self) -> set[str]:
        """Every host that was asked for anything since the window was opened."""
        self._read_logs()
        # Not the browser's own pages (chrome:), nor what a page carries with it (data:, blob:).
        parts = map(urlsplit, self._requests)
        return {part.hostname or "" for part in parts if part.scheme in ("http", "https", "ws", "wss")}

    def complaints(self) -> list[str]:
        """Errors in the console since the window was opened."""
        self._read_logs()
        return self._complaints

    def _read_logs(self) -> None:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self._requests.append(message["params"]["url"])
        self._complaints += [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    """A browser with an empty profile; skipped where Chromium, its driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and chromedriver):
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
