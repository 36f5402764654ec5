"""A headless Chromium for the tests marked `browser`, with its network requests and its console errors."""

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
    "--disable-features=BackForwardCache",  # a page that a test leaves is gone
    "--force-prefers-reduced-motion",
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
)
TIMEOUT_S = 60.0


class Browser:
    """One browser window; `driver` is selenium's driver."""

    def __init__(self, driver: Any):
        self.driver = driver
        self._requests: list[str] = []
        self._errors: list[str] = []

    def wait(self, condition: Callable[[], Any], message: str, timeout_s: float = TIMEOUT_S) -> Any:
        """The first true value of `condition`. Fails with `message` after the timeout."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, timeout_s, 0.02, ignored).until(lambda _: condition(), message)

    def find(self, selector: str) -> Any:
        """Waits for a visible element, and returns the first one."""
        return self.wait(lambda: next((e for e in self.all(selector) if e.is_displayed()), None), f"no {selector}")

    def click(self, element: str | Any) -> None:
        """Clicks an element, or the first visible one of a selector, once nothing covers it: a page moves while it loads."""
        from selenium.common.exceptions import ElementClickInterceptedException, ElementNotInteractableException

        def clicked() -> bool:
            try:
                (self.find(element) if isinstance(element, str) else element).click()
            except (ElementClickInterceptedException, ElementNotInteractableException):
                return False
            return True

        self.wait(clicked, f"{element} cannot be clicked")

    def all(self, selector: str) -> list[Any]:
        """Every element of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """The return value of a piece of JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def screenshot(self, path: Path, *, width: int, height: int = 0) -> None:
        """Saves a screenshot in a window of this width: of the whole page, or of the given height."""
        size = {"width": width, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": height or 900})
        tall = height or int(self.run("return document.documentElement.scrollHeight"))
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": tall})
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))

    def emulate(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Gives the window a size, and the system a light or a dark colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def barriers(self) -> list[str]:
        """What axe-core calls serious or critical on the page: each rule with its elements and the reason."""
        axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
        found = axe.Axe().run(self.driver)["violations"]
        return [
            f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def hosts(self) -> set[str]:
        """All hosts that the browser has sent a request to."""
        self._read_logs()
        # Without the browser's own pages (chrome:) and embedded content (data:, blob:).
        parts = map(urlsplit, self._requests)
        return {part.hostname or "" for part in parts if part.scheme in ("http", "https", "ws", "wss")}

    def console_errors(self) -> list[str]:
        """All errors in the browser's console."""
        self._read_logs()
        return self._errors

    def _read_logs(self) -> None:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self._requests.append(message["params"]["url"])
        self._errors += [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator[Any]:
    """A driver of a Chromium with an empty profile, for all tests; skipped where one of the three programs is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and chromedriver):
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium) -> Iterator[Browser]:
    """An empty tab without cookies and stored data, the only one, with the window's own size and colours.

    It is the same tab for all tests: a new one has a new process, which compiles the scripts of a page again.
    """
    for log in chromium.log_types:
        chromium.get_log(log)  # the entries of earlier tests
    yield Browser(chromium)
    tab, *others = chromium.window_handles
    for handle in others:
        chromium.switch_to.window(handle)
        chromium.close()
    chromium.switch_to.window(tab)
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    chromium.execute_script("if (origin !== 'null') sessionStorage.clear()")
    chromium.get("about:blank")  # so that no page works while other tests run
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
