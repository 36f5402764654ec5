"""The whole way of a person with own videos: a search without a model, labels by the keyboard, a training, a search with it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from in_browser import browser_marks
from label_page import LABELS, READY, LabelPage, LabelServer
from library_page import LibraryPage
from preloaded import Preloaded

pytestmark = browser_marks("gradio")
ROOT = Path(__file__).parents[2]
FILES = {
    "train_0000": "garden",
    "train_0001": "2026/garden",
    "train_0002": "2026/trip to the sea/été <b>",
    "train_0003": "2026/2026-05-01 a long name of a recording that goes on and on and on, as those of cameras do",
}
SETTINGS = """\
extract: {{weights: {clip}, fps: 0.5}}
train:
  model: {{width: 32, heads: 2}}
  spatial: {{top_k: 4}}
  train: {{epochs: 2, warmup_steps: 1, batch_size: 6}}
"""
SLOW_S = 180.0  # for what takes a few seconds on an idle machine
ANSWERED = ".found > p"
BROKEN = "return [...document.querySelectorAll('header button')].filter(one => one.offsetHeight > 60).map(one => one.id)"
NOT_SAVED = "Not saved: 1 change. costl label does not answer; start it again."


class Moment(NamedTuple):
    """What a person labels: a sentence and its seconds in a video, which is named by its path in the folder."""

    video: str
    sentence: str
    start_s: float
    end_s: float

    @property
    def shown(self) -> list[str]:
        """What the page lists."""
        return [self.sentence, f"0:{self.start_s:04.1f} – 0:{self.end_s:04.1f}"]


class Window(LabelPage):
    """A window with the labelling page, which comes to the front when a person uses it."""

    def __init__(self, browser, server: LabelServer, *, is_new: bool):
        if is_new:
            browser.driver.switch_to.new_window("window")
        super().__init__(browser, server)
        self._handle = browser.driver.current_window_handle

    def to_front(self) -> None:
        self.browser.driver.switch_to.window(self._handle)

    def video(self) -> str:
        return self.browser.run("return current.name")

    def go_to(self, video: str, *, key: str = "]") -> None:
        """Goes from video to video until it is this one."""
        self.to_front()
        while self.video() != video:
            self.go_on(key)

    def go_on(self, key: str) -> None:
        before = self.video()
        self.keys(key)
        self.browser.wait(lambda: self.video() != before and self.browser.run(READY), f"{key} leads nowhere from {before}")

    def begin(self, moment: Moment) -> None:
        """Sets the start."""
        self.to_front()
        self.seek(moment.start_s)
        self.keys("i")

    def end(self, moment: Moment) -> None:
        """Sets the end."""
        self.to_front()
        self.seek(moment.end_s)
        self.keys("o")

    def say(self, sentence: str) -> None:
        """Types a sentence, and saves the moment."""
        from selenium.webdriver.common.keys import Keys

        self.to_front()
        self.keys(Keys.ENTER, sentence, Keys.ENTER)

    def add(self, moment: Moment) -> None:
        self.begin(moment)
        self.end(moment)
        self.say(moment.sentence)

    def wait_until_not_saved(self) -> None:
        """Waits until the page says that the label which was made last is not saved."""
        self.to_front()
        self.browser.wait(lambda: self.text("#saved") == NOT_SAVED, f"the page does not say {NOT_SAVED!r}")

    def wait_until_saved(self, moments: Sequence[Moment]) -> None:
        """Waits until the page shows exactly these labels of its video, all of them as saved."""
        self.to_front()
        expected = sorted(moment.shown for moment in moments)
        self.wait_for(f"{LABELS}.sort((a, b) => a[0] < b[0] ? -1 : 1)", expected)


class Journey:
    """A person's folder HOME with `videos/`, the commands that are given in it, and what is done in the browser."""

    def __init__(self, browser, home: Path, world):
        self.browser, self.home, self.weights = browser, home, world.videos / "clip"
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "cache")}
        for source, name in FILES.items():
            (home / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(world.videos / f"{source}.mp4", home / "videos" / f"{name}.mp4")
        (home / "videos" / "costl.yaml").write_text(SETTINGS.format(clip=self.weights), encoding="utf-8")

    def search(self, sentence: str, *options: object, answered_by: str, picture: str) -> None:
        """Searches on the library page, which says what has answered."""
        with self.demo(*options) as address:
            page = LibraryPage(self.browser, address, self.home)
            page.open(cards=0)
            indexed = lambda: page.browser.run("return $('#library').textContent").startswith("4 videos")  # noqa: E731
            page.browser.wait(indexed, "not indexed", SLOW_S)
            page.keys(sentence, "\n")
            page.browser.wait(lambda: page.browser.all(ANSWERED), "no answer", SLOW_S)
            assert page.text(ANSWERED) == f"Answered by {answered_by}"
            page.browser.click("#show-below")
            page.browser.find(".card.below")
            self.look(picture)

    @contextmanager
    def demo(self, *options: object) -> Iterator[str]:
        """The address of `costl demo`, which says nothing else until Ctrl-C ends it."""
        command = ["-m", "costl", "demo", "--videos", "videos", "--port", "0", "--device", "cpu", *options]
        server = Preloaded(
            command, cwd=self.home, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGINT)
            output, messages = server.communicate(timeout=SLOW_S)
        assert (server.returncode, output, messages) == (0, "", "")

    def look(self, picture: str) -> None:
        """The page fits on a telephone and on a desk, and has no barriers; a picture of both is stored."""
        for width in (390, 1440):
            self.browser.emulate(width=width)
            assert self.browser.run("return document.documentElement.scrollWidth") <= width
            assert not self.browser.run(BROKEN), "buttons at the top need two lines"
            assert self.browser.barriers() == []
            self.browser.screenshot(self.home / "pictures" / f"{picture}-{width}.png", width=width)

    def run(self, command: Sequence[str]) -> str:
        """What a command prints."""
        process = Preloaded(
            ["-m", *command], cwd=self.home, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        output, messages = process.communicate(timeout=SLOW_S)
        assert process.returncode == 0, messages
        return output


@pytest.fixture
def journey(browser, world, tmp_path) -> Journey:
    return Journey(browser, tmp_path, world)


@pytest.fixture(scope="module")
def moments(world) -> dict[str, list[Moment]]:
    """What a person could label, by video."""
    rows = map(json.loads, (world.videos / "train.jsonl").read_text(encoding="utf-8").splitlines())
    every = [Moment(f"{FILES[row['vid']]}.mp4", row["query"], *row["relevant_windows"][0]) for row in rows]
    return {f"{name}.mp4": [moment for moment in every if moment.video == f"{name}.mp4"] for name in FILES.values()}


@pytest.mark.timeout(900)  # half a minute on an idle core
def test_own_videos_are_searched_labelled_learned_and_searched_again(journey, moments, browser):
    """With one validation video no model is clearly better than CLIP alone: the page says so, and one that is named answers."""
    sentence = moments["garden.mp4"][0].sentence
    zero_shot = "zero-shot ViT-B-32, clip"
    journey.search(sentence, "--weights", journey.weights, answered_by=zero_shot, picture="zero-shot")
    with closing(LabelServer(journey.home, journey.weights)) as server:
        prepare, extract, train = label(journey, server, moments)
    journey.run(prepare)
    journey.run(extract)
    run = journey.run([*train, "--device", "cpu"]).strip()
    passed_over = f"{zero_shot} · {run} is not used: it is not clearly better than CLIP alone."
    journey.search(sentence, answered_by=passed_over, picture="passed-over")
    journey.search(sentence, "--run", run, answered_by=run, picture="trained")
    assert browser.hosts() == {"127.0.0.1"}
    errors = browser.console_errors()
    # A server was killed, and the new one refuses what pages of the old one send, until they have its token. A demo that
    # ends, as each does after its search, gives no more pictures.
    at_an_end = {"/label/": ("ERR_CONNECTION", " 403 "), "/library/frames/": ("ERR_CONNECTION", " 503 ")}
    expected = [(path, sign) for path, signs in at_an_end.items() for sign in signs]
    assert [error for error in errors if not any(path in error and sign in error for path, sign in expected)] == []


def label(journey: Journey, server: LabelServer, moments: dict[str, list[Moment]]) -> list[list[str]]:
    """Ten labels by the keyboard alone, and three of another window at the same time; -> the commands that are printed."""
    person = Window(journey.browser, server, is_new=False)
    person.open("")
    videos = person.browser.run("return state.videos.map(video => video.name)")
    first, second, third, fourth = [moments[video][:count] for video, count in zip(videos, (4, 4, 3, 2), strict=True)]
    for moment in first[:3]:
        person.add(moment)
    other = Window(journey.browser, server, is_new=True)
    other.open("")
    other.go_to(first[3].video)
    other.add(first[3])
    for window in (other, person):
        window.wait_until_saved(first)
    label_over_a_kill(journey, person, other, second, before=first)
    label_at_once(person, other, third)
    person.go_to(fourth[0].video)
    for moment in fourth:
        person.add(moment)
    person.wait_until_saved(fourth)
    journey.look("label")
    return commands_at_the_end(server, [*first, *second, *third, *fourth])


def label_over_a_kill(journey: Journey, person: Window, other: Window, moments: list[Moment], before: list[Moment]) -> None:
    """The server is killed when one window is between the two ends of a moment, and the other one within a sentence."""
    from selenium.webdriver.common.keys import Keys

    *done, late, of_other = moments
    person.go_to(late.video)
    for moment in done:
        person.add(moment)
    person.wait_until_saved(done)
    person.begin(late)
    other.go_to(late.video, key="[")  # its list has the video with labels last
    other.begin(of_other)
    other.end(of_other)
    other.keys(Keys.ENTER, of_other.sentence[:9])
    person.server.end(signal.SIGKILL)
    other.keys(of_other.sentence[9:], Keys.ENTER)
    person.end(late)
    person.say(late.sentence)
    for window in (other, person):
        window.wait_until_not_saved()
    journey.look("not-saved")
    person.server.start()
    assert sorted(labelled(person.server)) == sorted([*before, *done])
    for window in (other, person):
        window.wait_until_saved(moments)


def label_at_once(person: Window, other: Window, moments: list[Moment]) -> None:
    """Two windows label the same video in turn."""
    first, of_other, last = moments
    person.go_to(first.video)
    other.go_to(first.video)
    person.begin(first)
    other.begin(of_other)
    person.end(first)
    other.end(of_other)
    person.say(first.sentence)
    person.begin(last)
    other.say(of_other.sentence)
    person.end(last)
    person.say(last.sentence)
    for window in (other, person):
        window.wait_until_saved(moments)


def labelled(server: LabelServer) -> list[Moment]:
    """The moments in the file of the labels, each of which is a row."""
    return [Moment(f"{row['vid']}.mp4", row["query"], *window) for row in server.rows() for window in row["relevant_windows"]]


def commands_at_the_end(server: LabelServer, expected: list[Moment]) -> list[list[str]]:
    """Ctrl-C leaves exactly these labels, and prints how to go on."""
    summary, _, *commands = server.end(signal.SIGINT).splitlines()
    assert summary == "videos/labels.jsonl: 13 labels of 4 of 4 videos: 13 moments."
    assert sorted(labelled(server)) == sorted(expected)
    return [shlex.split(command) for command in commands]
