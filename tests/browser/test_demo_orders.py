"""Every order in which a page's questions and their answers can come: repeated, late, overtaken, and from two tabs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_browser import browser_marks
from preloaded import Preloaded

pytestmark = browser_marks("gradio")
ROOT = Path(__file__).parents[2]
QUERY = "#costl-query input, #costl-query textarea"


@pytest.fixture(scope="module")
def served(world, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a demo, and the folder of its gates (see `gated_demo`)."""
    home = tmp_path_factory.mktemp("gated")
    for name in ("a.mp4", "b.mp4", "slow.mp4"):
        (home / "videos").mkdir(exist_ok=True)
        shutil.copy(world.videos / "test_0000.mp4", home / "videos" / name)
    command = [ROOT / "tests" / "helpers" / "gated_demo.py", home, home / "videos"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Preloaded(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip(), home
        finally:
            server.terminate()


class Person:
    """Does to a page what a person can do, one step after the other."""

    def __init__(self, browser, served, world):
        self.browser, (self.address, self.gates), self.world = browser, served, world
        browser.driver.get(self.address)
        browser.find(QUERY)
        self.tabs = [browser.driver.current_window_handle]

    def upload(self, name: str) -> None:
        """Uploads a video, and waits for its player."""
        self.browser.all("#costl-upload input[type=file]")[0].send_keys(str(self.world.videos / name))
        self.player(name)

    def pick(self, name: str) -> None:
        """Picks a video from the list, and does not wait."""
        self.browser.click("#costl-choice input")
        listed = "#costl-choice [role=option], ul[role=listbox] li"
        find = lambda: next((e for e in self.browser.all(listed) if name in e.get_attribute("textContent")), None)  # noqa: E731
        self.browser.click(self.browser.wait(find, f"{name} is not listed"))

    def player(self, name: str) -> None:
        """Waits until the page plays a video."""
        selector = f"#costl-player video[aria-label='{name}']"
        self.browser.wait(lambda: self.browser.all(selector), f"no player of {name}")

    def ask(self, query: str) -> None:
        """Replaces the query, and presses Enter."""
        from selenium.webdriver.common.keys import Keys

        self.browser.find(QUERY).send_keys(Keys.CONTROL, "a")
        self.browser.find(QUERY).send_keys(query, Keys.ENTER)

    def type(self, text: str) -> None:
        """Adds to the query; "<" removes the last letter."""
        from selenium.webdriver.common.keys import Keys

        self.browser.find(QUERY).send_keys(text.replace("<", Keys.BACKSPACE))

    def enter(self, key: str) -> None:
        """Presses Enter, or the button."""
        self.type("\n") if key == "Enter" else self.browser.click("#costl-ask")

    def works(self, text: str) -> None:
        """Waits until the page shows progress."""
        self.browser.wait(lambda: text in self.browser.find(".work span").text, f"no progress: {text}")

    def cancel(self, query: str) -> None:
        """Clicks Cancel, and waits until the work for a query has stopped."""
        self.browser.click(".cancel")
        assert not self.browser.all(".work")[0].is_displayed()
        self.stopped(query)

    def stopped(self, query: str) -> None:
        """Waits until the work for a query has stopped."""
        self.browser.wait((self.gates / f"{query}.stopped").exists, f"{query!r} goes on")

    def may(self, gate: str) -> None:
        """Lets the server answer a query, or open the slow video."""
        (self.gates / gate).touch()

    def sees(self, query: str) -> None:
        """Waits until the answer of a query is the only thing that the page shows."""
        shown = lambda: [e.get_attribute("data-query") for e in self.browser.all(".answer") if e.is_displayed()]  # noqa: E731
        self.browser.wait(lambda: shown() == [query], f"the page does not show the answer of {query!r}")
        self.browser.wait(lambda: not self.browser.all(".work")[0].is_displayed(), "the progress stays")

    def sees_nothing(self, _: str) -> None:
        """Waits until no answer is visible."""
        self.browser.wait(lambda: not any(e.is_displayed() for e in self.browser.all(".answer")), "an answer stays")

    def reads(self, text: str) -> None:
        """Waits for a text in the result."""
        self.browser.wait(lambda: text in self.browser.find("#costl-result .reply").text, f"no {text!r}")

    def tab(self, number: str) -> None:
        """Goes to a tab, which is opened if it is new."""
        if int(number) > len(self.tabs):
            self.browser.driver.switch_to.new_window("tab")
            self.tabs.append(self.browser.driver.current_window_handle)
            self.browser.driver.get(self.address)
            self.browser.find(QUERY)
        self.browser.driver.switch_to.window(self.tabs[int(number) - 1])

    def reload(self, _: str) -> None:
        """Loads the page again."""
        self.browser.driver.refresh()
        self.browser.find(QUERY)

    def close(self, number: str) -> None:
        """Closes a tab."""
        self.browser.driver.close()
        self.tabs.pop()
        self.tab(number)


UP = "upload test_0001.mp4"
A = "pick a.mp4; player a.mp4"
TWO_TABS = f"{UP}; ask x; works 3 of 12; tab 2; {A};"
ORDERS = {
    "one question": f"{UP}; ask x; works 3 of 12 clips; may x; sees x",
    "the button": f"{UP}; type x; enter button; may x; sees x",
    "Enter twice": f"{UP}; ask x; enter Enter; enter button; works 3 of 12; may x; sees x",
    "asked again": f"{UP}; ask x; may x; sees x; enter Enter; sees x",
    "answers in order": f"{UP}; ask x; works 3 of; ask y; may x; may y; sees y",
    "answers in the other order": f"{UP}; ask x; works 3 of; ask y; may y; sees y; may x; sees y",
    "back to the first question": f"{UP}; ask x; ask y; ask x; may y; may x; sees x",
    "typed on, then back": f"{UP}; ask x; type yz; may x; sees_nothing -; type <<; sees x",
    "typed on, then asked": f"{UP}; ask x; type y; enter Enter; may x; may xy; sees xy",
    "typed on after the answer": f"{UP}; ask x; may x; sees x; type y; sees_nothing -; type <; sees x",
    "the question before the upload": f"may x; ask x; reads Choose or upload a video first; {UP}; sees x",
    "the question before the choice": "may x; ask x; reads Choose or upload a video first; pick a.mp4; sees x",
    "another question first": f"may x; ask x; reads Choose; type y; {UP}; sees_nothing -; type <; enter Enter; sees x",
    "the question while a video is opened": "pick slow.mp4; ask x; may slow.mp4; player slow.mp4; works 3 of; may x; sees x",
    "the question while another video is opened": f"{UP}; may x; pick slow.mp4; ask x; may slow.mp4; player slow.mp4; sees x",
    "two questions while a video is opened": "may x; may y; pick slow.mp4; ask x; ask y; may slow.mp4; sees y",
    "two videos chosen quickly": "pick slow.mp4; pick a.mp4; ask x; may slow.mp4; player a.mp4; may x; sees x",
    "chosen after the upload": f"{UP}; {A}; ask x; may x; sees x",
    "uploaded after the choice": f"{A}; {UP}; ask x; may x; sees x",
    "another video instead of an answer": f"{UP}; ask x; works 3 of; {A}; stopped x; ask y; may y; sees y",
    "another video after the answer": f"{UP}; ask x; may x; sees x; {A}; sees_nothing -; enter Enter; sees x",
    "cancelled, then asked again": f"{UP}; ask x; works 3 of; cancel x; reads Cancelled; enter Enter; works 3 of; may x; sees x",
    "cancelled, then another question": f"{UP}; ask x; works 3 of; cancel x; ask y; may y; sees y",
    "cancelled, then another video": f"{UP}; ask x; works 3 of; cancel x; {A}; ask y; may y; sees y",
    "the page is loaded again": f"{UP}; ask x; works 3 of; reload -; stopped x; {UP}; ask x; may x; sees x",
    "a second tab is answered first": f"{TWO_TABS} ask y; may y; sees y; tab 1; works 3 of; may x; sees x",
    "a second tab asks the same": f"{A}; ask x; works 3 of; tab 2; {A}; ask x; works 3 of; may x; sees x; tab 1; sees x",
    "a second tab cancels": f"{TWO_TABS} ask y; works 3 of; cancel y; tab 1; works 3 of; may x; sees x",
    "a second tab is closed": f"{TWO_TABS} ask y; works 3 of; close 1; stopped y; works 3 of; may x; sees x",
}


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS.keys())
def test_the_newest_question_is_answered_in_every_order(browser, served, world, steps):
    person = Person(browser, served, world)
    try:
        for step in steps.split("; "):
            name, _, argument = step.strip().partition(" ")
            getattr(person, name)(argument)
        assert browser.console_errors() == []
    finally:
        for gate in person.gates.glob("*"):
            if gate.is_file():
                gate.unlink()
