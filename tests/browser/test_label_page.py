"""The labelling page in a browser: a video labelled by the keyboard, two windows, a kill, a copy that plays, no barriers."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from in_browser import browser_marks
from label_page import LABELS, LabelPage, LabelServer
from numbered_videos import frame_times, make_video

pytestmark = browser_marks("fastapi")
FILES = {"test_0000.mp4": "a.mp4", "test_0001.mp4": "2026/b <b>long name of a recording that goes on and on.mp4"}
# Requests wait until `release()`: the window is slow.
HOLD = """
const [original, waiting] = [window.fetch, new Promise(done => { window.release = done; })];
window.fetch = (...request) => waiting.then(() => original(...request));
"""


@pytest.fixture
def server(world, tmp_path) -> Iterator[LabelServer]:
    for source, name in FILES.items():
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.videos / source, tmp_path / "videos" / name)
    make_video(tmp_path / "videos" / "old.avi", frame_times(60, fps=5), codec="mpeg4", ticks=1000)
    with closing(LabelServer(tmp_path, world.videos / "clip")) as server:
        yield server


@pytest.fixture
def page(browser, server) -> LabelPage:
    return LabelPage(browser, server)


def test_a_video_is_labelled_by_the_keyboard(page, server, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.open("a.mp4")
    page.mark(2, 6, "the red ring")
    page.wait_for(LABELS, [["the red ring", "0:02.0 – 0:06.0"]])
    page.mark(9, 12, "the r", Keys.TAB)  # completed
    page.wait_for(LABELS, [["the red ring", "0:02.0 – 0:06.0", "0:09.0 – 0:12.0"]])
    page.keys(Keys.ENTER, "a green dog")
    ActionChains(page.browser.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    page.wait_for("return labels().map(label => label.answer.absent)", [False, True])
    page.seek(0)
    page.keys(Keys.ARROW_DOWN)  # selects the first moment
    page.browser.wait(lambda: page.browser.run("return selected && selected.at === 0"), "nothing is selected")
    page.seek(3)
    page.keys("i")
    page.wait_for(LABELS, [["the red ring", "0:03.0 – 0:06.0", "0:09.0 – 0:12.0"], ["a green dog"]])
    page.keys("g", "4", "2", "g")
    page.wait_for("return labels()[0].answer.grades", {"1": 4, "2": 2})
    page.keys("z", "z", "Z")
    page.wait_for("return labels()[0].answer.grades", {"1": 4})
    page.keys(Keys.ARROW_DOWN, Keys.DELETE)  # the moment after the playhead
    page.wait_for(LABELS, [["the red ring", "0:03.0 – 0:06.0"], ["a green dog"]])
    page.browser.click("#show-exports")
    page.keys("z", "]")  # do nothing while the dialog is open
    loaded = page.browser.run(
        "return Promise.all([...document.querySelectorAll('#exports a')].map(link => fetch(link.href)"
        ".then(async reply => [link.download, reply.status, (await reply.text()).includes('red ring')])))"
    )
    assert loaded == [["labels.jsonl", 200, True], ["label-studio.json", 200, True], ["label-studio.xml", 200, False]]
    page.keys(Keys.ESCAPE, "]")
    page.browser.wait(lambda: page.browser.run("return !!facts && current.name === 'old.avi'"), "not the next video")
    assert server.end(signal.SIGINT).splitlines() == [
        "videos/labels.jsonl: 2 labels of 1 of 3 videos: 1 moment, 1 not in their video.",
        "Next:",
        "  costl prepare videos/labels.jsonl --videos videos --out labels/",
        "  costl extract --videos videos --annotations labels/ --out labels.h5",
        "  costl train --cache labels.h5",
    ]
    first, second = server.rows()
    assert (first["vid"], first["relevant_windows"], first["relevant_clip_ids"]) == ("a", [[3, 6]], [1])
    assert (second["query"], second["relevant_windows"]) == ("a green dog", [])
    assert page.browser.hosts() == {"127.0.0.1"}
    page.browser.console_errors().clear()


def test_nothing_that_was_shown_as_saved_is_lost_by_a_kill(page, server):
    page.open("a.mp4")
    page.mark(2, 6, "before")
    page.wait_for(LABELS, [["before", "0:02.0 – 0:06.0"]])
    server.end(signal.SIGKILL)
    page.mark(8, 9, "after")
    page.browser.wait(lambda: "Not saved: 1 change" in page.text("#saved"), "the page says that it is saved")
    server.start()
    assert [row["query"] for row in server.rows()] == ["before"]
    page.wait_for(LABELS, [["before", "0:02.0 – 0:06.0"], ["after", "0:08.0 – 0:09.0"]])
    page.browser.wait(lambda: page.browser.run("return video.readyState > 1"), "the video does not play again")
    server.end(signal.SIGKILL)
    server.start()
    assert [row["query"] for row in server.rows()] == ["before", "after"]
    page.browser.console_errors().clear()


def test_two_windows_show_a_conflict_and_lose_nothing(page, server):
    from selenium.webdriver.common.keys import Keys

    driver = page.browser.driver
    page.open("a.mp4")
    page.mark(2, 6, "the ring")
    page.wait_for(LABELS, [["the ring", "0:02.0 – 0:06.0"]])
    page.browser.run(HOLD)
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    page.open("a.mp4")
    page.mark(8, 9, "another")
    page.seek(0)
    page.keys(Keys.ARROW_DOWN)
    page.seek(3)
    page.keys("i")
    both = [["the ring", "0:03.0 – 0:06.0"], ["another", "0:08.0 – 0:09.0"]]
    page.wait_for(LABELS, both)
    driver.switch_to.window(first)
    page.keys(Keys.ARROW_UP)
    page.seek(5)
    page.keys("o")
    page.browser.run("release()")
    alert = page.browser.find(".alert")
    assert "Another window has changed “the ring”: 0:03.0 – 0:06.0. Yours: 0:02.0 – 0:05.0." in alert.text
    page.wait_for(LABELS, both)
    page.browser.click(alert.find_elements("css selector", "button")[1])
    mine = [["the ring", "0:02.0 – 0:05.0"], ["another", "0:08.0 – 0:09.0"]]
    page.wait_for(LABELS, mine)
    driver.switch_to.window(driver.window_handles[-1])
    page.wait_for(LABELS, mine)
    page.browser.console_errors().clear()


def test_proposals_are_accepted_moved_and_refused(page, server):
    from selenium.webdriver.common.keys import Keys

    page.open("a.mp4")
    page.browser.wait(lambda: page.browser.run("return $('#index').dataset.state") == "ready", "not indexed", 120)
    page.keys(Keys.ENTER, "the red ring", Keys.ESCAPE, Keys.ESCAPE)
    page.browser.wait(lambda: page.browser.all(".span.proposal"), "no proposals", 120)
    count = len(page.browser.all(".span.proposal"))
    assert "by zero-shot ViT-B-32" in page.text("#offers")
    page.keys("p")
    first = page.browser.run("return [selected.proposal.start, selected.proposal.end]")
    page.browser.run("player.seek(arguments[0])", first[1] - 0.5)
    page.browser.wait(lambda: page.browser.run("return !video.seeking"), "it seeks")
    page.keys("o", "a")
    page.wait_for("return labels().map(label => label.answer.windows)", [[[first[0], first[1] - 0.5]]])
    left = len(page.browser.all(".span.proposal"))
    assert left < count
    if left:
        page.keys("p", "r")
        page.browser.wait(lambda: len(page.browser.all(".span.proposal")) == left - 1, "it is not refused")
        page.keys("z")
        page.browser.wait(lambda: len(page.browser.all(".span.proposal")) == left, "the refusal is not undone")
    assert page.browser.console_errors() == []


def test_a_video_that_browsers_cannot_play_gets_a_copy(page, server):
    page.open("old.avi")
    page.browser.wait(lambda: page.browser.run("return player.pictures && $('#picture').naturalWidth"), "no picture")
    page.mark(2, 5, "in pictures")
    page.wait_for(LABELS, [["in pictures", "0:02.0 – 0:05.0"]])
    assert "single pictures" in page.text("#proxy-text")
    page.browser.click("#make-proxy")
    page.browser.wait(lambda: page.browser.run("return !player.pictures && video.readyState > 1"), "the copy does not play")
    assert page.browser.run("return player.now") == pytest.approx(5.0, abs=0.01)
    assert not [file for file in server.labels.parent.iterdir() if file.suffix in (".mp4", ".webm") and file.name != "a.mp4"]
    page.keys("l")
    page.browser.wait(lambda: page.browser.run("return player.now") > 5.3, "it does not play forwards")
    page.keys("j")
    page.browser.wait(lambda: page.browser.run("return player.now") < 5.0, "it does not play backwards")
    page.keys("k")
    page.browser.console_errors().clear()  # Chromium reports the file that it cannot play


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_has_no_barriers(page, tmp_path, dark):
    page.open("a.mp4")
    page.mark(2, 6, "the red ring")
    page.mark(4, 9, "a long sentence that goes on and on, as those of people who describe everything do")
    page.wait_for("return labels().length", 2)
    page.browser.run("alertWith('Something.', [['Close', () => {}]]); grading = true; select(labels()[0], 0)")
    page.browser.run("sentence.focus(); showKnown()")
    for width in (1440, 390):
        page.browser.emulate(width=width, dark=dark)
        page.browser.run("proposals = [{start: 1, end: 3, score: 0.9, key: 'x', text: 'y'}]; curve = [0, 1, 0]; draw()")
        assert page.browser.barriers() == []
        assert page.browser.run("return document.documentElement.scrollWidth") <= width
        page.browser.screenshot(tmp_path / f"label-{width}-{'dark' if dark else 'light'}.png", width=width)
        page.browser.click("#show-exports")
        assert page.browser.barriers() == []
        assert page.browser.run("return $('#exports').scrollWidth <= $('#exports').clientWidth")
        page.browser.click("#hide-exports")
    page.browser.run("$('#keys').showModal(); player.pictures = true; showProxy({state: 'running', done: 1, total: 3})")
    assert page.browser.barriers() == []
