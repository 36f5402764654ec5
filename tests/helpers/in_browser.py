"""For the tests that drive the pages of the demo in a browser: their marks, and what every page has."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest


def browser_marks(needs: str) -> list[pytest.MarkDecorator]:
    """`browser`, and a skip where the library `needs` is not installed."""
    reason = f"{needs} is not installed; it comes with the extra `demo`"
    return [pytest.mark.browser, pytest.mark.skipif(find_spec(needs) is None, reason=reason)]


class Page:
    """A page in a window of 1440 pixels, and what a person does to it."""

    def __init__(self, browser: Any):
        self.browser = browser
        browser.emulate(width=1440)

    def keys(self, *keys: str) -> None:
        """Presses keys, wherever the focus is; a text of several letters at once is typed."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser.driver).send_keys(*keys).perform()
