"""The library page in a browser: search, keys, playing, filters, nothing found, exports, and the index that goes on meanwhile."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_browser import browser_marks
from library_page import LibraryPage
from numbered_videos import frame_times, make_video
from preloaded import Preloaded

pytestmark = browser_marks("fastapi")
ROOT = Path(__file__).parents[2]
FILES = {
    "test_0000.mp4": "a.mp4",
    "test_0001.mp4": "2026/2026-05-01 a <b>long name of a recording that goes on and on and on, as those of cameras do.mp4",
    "val_0000.mp4": "2026/trip/c & d.mp4",
}
PLAYER = "return (video => video && [video.currentTime, video.muted, video.paused])(document.querySelector('.card video'))"
# Seeks, and stores in `latest` the latest second that is played from then on.
SEEK = """
const video = document.querySelector('.card video');
window.latest = 0;
video.addEventListener('timeupdate', () => { latest = Math.max(latest, video.currentTime); });
video.currentTime = arguments[0];
"""
# Stores in `hovers` when a mouse reaches a frame and when it begins to play, in milliseconds.
TIME_OF_HOVER = """
window.hovers = [];
const store = () => hovers.push(performance.now());
arguments[0].addEventListener('pointerover', store, {once: true});
new MutationObserver(store).observe(arguments[0].querySelector('.play'), {attributeFilter: ['aria-pressed']});
"""


@pytest.fixture(scope="module")
def served(world, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a library page, once its videos are indexed, and its folder: videos/ and slow (see `library_demo`)."""
    home = tmp_path_factory.mktemp("library")
    for source, name in FILES.items():
        (home / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.videos / source, home / "videos" / name)
    (home / "videos" / "old").mkdir()
    make_video(home / "videos" / "old" / "camera.avi", frame_times(60, fps=5), codec="mpeg4", ticks=1000)
    (home / "videos" / "broken.mp4").write_text("not a video")
    command = [ROOT / "tests" / "helpers" / "library_demo.py", home, home / "videos", world.videos / "clip"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "home")}
    with Preloaded(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert json.loads(index_replies(address)[-1])["state"] == "ready"
            yield address, home
        finally:
            server.terminate()


def index_replies(address: str) -> list[bytes]:
    """The lines of a page about its index until no update runs."""
    with urllib.request.urlopen(f"{address}library/index", timeout=60) as reply:
        return reply.read().splitlines()


@pytest.fixture
def page(browser, served) -> Iterator[LibraryPage]:
    yield LibraryPage(browser, *served)
    assert browser.hosts() == {"127.0.0.1"}
    assert browser.console_errors() == []


def test_a_sentence_is_searched_and_keys_walk_over_its_moments(page):
    from selenium.webdriver.common.keys import Keys

    page.browser.driver.get(page.address)
    page.browser.find("#intro")
    page.browser.run("document.activeElement.blur()")
    page.keys("/", "the red ring", Keys.ENTER)
    page.browser.find(".card")
    assert page.parameters() == "?q=the+red+ring" and page.text("#status").endswith("of 4 videos")
    assert set(page.names()) == {"old/camera.avi", *FILES.values()}
    columns = page.browser.run("return getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    last = len(page.names()) - 1
    assert columns == 4 <= last
    focus = [page.keys(key) or page.focus() for key in (Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.END)]
    assert focus == [0, 1, min(1 + columns, last), last]
    focus = [page.keys(key) or page.focus() for key in (Keys.ARROW_RIGHT, Keys.HOME, Keys.ARROW_LEFT, Keys.ARROW_UP)]
    assert focus == [last, 0, 0, 0]
    page.keys("/", "x")
    assert page.focus() == -1 and page.browser.run("return document.querySelector('#query').value") == "x"


@pytest.mark.parametrize("key", ["ENTER", "SPACE"])
def test_a_key_plays_the_moment_in_a_loop(page, key):
    from selenium.webdriver.common.keys import Keys

    page.open("?q=the+red+ring&within=2026/")
    # Not a moment at the end of its video, which begins again in another way.
    inner = "return cards().findIndex(card => Number(card.dataset.end) < Number(card.dataset.duration) - 1)"
    rank = page.browser.run(inner)
    page.keys(Keys.ARROW_DOWN, *[Keys.ARROW_RIGHT] * rank, getattr(Keys, key))
    start, end = page.browser.run("return ['start', 'end'].map(name => Number(cards()[arguments[0]].dataset[name]))", rank)
    inside = lambda: (p := page.browser.run(PLAYER)) and start < p[0] < end and p[1:] == [True, False]  # noqa: E731
    page.browser.wait(inside, "the moment does not play")
    page.browser.run(SEEK, end - 0.1)
    page.browser.wait(lambda: start <= page.browser.run(PLAYER)[0] < end - 0.2, "the moment does not begin again")
    assert page.browser.run("return latest") < end + 1
    page.keys("m")
    assert page.browser.run(PLAYER)[1] is False
    page.keys("m", Keys.ESCAPE)
    assert page.browser.run(PLAYER) is None and page.focus() == rank


def test_hover_plays_after_a_moment_but_not_with_reduced_motion(page):
    from selenium.webdriver.common.action_chains import ActionChains

    def reduced_motion(value: str) -> None:
        media = {"features": [{"name": "prefers-reduced-motion", "value": value}]}
        page.browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    reduced_motion("no-preference")
    page.open("?q=the+red+ring&within=2026/")
    frame, outside = page.browser.find(".card .frame"), page.browser.find("h1")
    page.browser.run(TIME_OF_HOVER, frame)
    ActionChains(page.browser.driver).move_to_element(frame).perform()
    page.browser.wait(lambda: page.browser.run(PLAYER), "hovering does not play")
    assert page.browser.run("return hovers[1] - hovers[0]") >= 300
    ActionChains(page.browser.driver).move_to_element(outside).perform()
    page.browser.wait(lambda: page.browser.run(PLAYER) is None, "leaving does not stop")
    reduced_motion("reduce")
    ActionChains(page.browser.driver).move_to_element(frame).pause(0.6).perform()
    assert page.browser.run(PLAYER) is None


def test_a_file_that_browsers_cannot_play_is_shown_as_pictures(page):
    page.open("?q=the+red+ring&within=old/")
    page.browser.click(".play")
    shown = "return (image => image && image.naturalWidth)(document.querySelector('.card .slide'))"
    page.browser.wait(lambda: page.browser.run(shown), "no picture is shown")
    assert page.text(".card .message") == "This browser cannot play the file, so these are single pictures."
    page.browser.click(".play")
    assert not page.browser.all(".slide") and not page.browser.all(".card .message:not(:empty)")
    page.browser.console_errors().clear()  # Chromium reports the file that it cannot play


def test_filters_are_in_the_address(page):
    from selenium.webdriver.common.keys import Keys

    page.open("?q=the+red+ring", cards=4)
    assert [option.get_attribute("value") for option in page.browser.all("#folders option")] == ["2026/", "2026/trip/", "old/"]
    page.browser.find("[name=within]").send_keys("2026/", Keys.ENTER)
    page.browser.wait(lambda: set(page.names()) == set(list(FILES.values())[1:]), "the folder is not searched alone")
    assert page.parameters() == "?q=the+red+ring&within=2026%2F"
    page.open("?q=the+red+ring&after=2026-05-01&before=2026-05-02&longer=3")
    assert set(page.names()) == {FILES["test_0001.mp4"]}
    page.browser.find("[name=longer]").send_keys("000", Keys.ENTER)
    page.wait_for(".problem", "none of 4 videos passes the filters")
    page.browser.driver.back()
    page.browser.wait(lambda: set(page.names()) == {FILES["test_0001.mp4"]}, "Back does not bring the filter back")
    assert page.browser.run("return form.elements.longer.value") == "3"
    page.browser.click("#clear-filters")
    page.browser.wait(lambda: len(set(page.names())) == 4, "the filters are not cleared")


def test_nothing_like_this_is_a_state_of_its_own(page):
    page.open("?q=an+absent+thing", cards=0)
    assert page.text(".nothing h2") == "Nothing like this here"
    assert "None of 4 videos shows “an absent thing”." in page.text(".nothing") and not page.names()
    assert page.browser.run("return $('#status').textContent") == "Nothing like this here."
    assert not page.browser.all("#export:not([hidden])")
    page.browser.click("#show-below")
    assert page.names() and len(page.browser.all(".card.below")) == len(page.names())


def test_selected_moments_are_exported(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    page.open("?q=the+red+ring&within=2026/", cards=3)
    page.keys(Keys.ARROW_DOWN, "x", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "x")
    assert page.text("#chosen") == "2 moments selected"
    (tmp_path / "csv").mkdir()
    file = page.export(tmp_path / "csv", "csv")
    assert file.name == "the-red-ring.csv"
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    ranks = ["0", "2"]
    script = "return cards().map(card => [card.dataset.rank, card.querySelector('.name').title, Number(card.dataset.start)])"
    expected = [(name, start) for rank, name, start in page.browser.run(script) if rank in ranks]
    assert [(row["name"], float(row["start_s"])) for row in rows] == expected
    assert all((page.home / "videos" / row["name"]).samefile(row["video"]) for row in rows)


def test_a_format_about_one_video_is_exported_as_an_archive(page, tmp_path):
    page.open("?q=the+red+ring&within=2026/", cards=3)
    assert page.text("#chosen") == f"All {len(page.names())} moments"
    with zipfile.ZipFile(page.export(tmp_path, "srt")) as archive:
        assert {f"2026/{name}" if "/" not in name else name for name in archive.namelist()} == {
            name.removesuffix("mp4") + "srt" for name in page.names()
        }
        assert all("the red ring" in archive.read(name).decode() for name in archive.namelist())


def test_indexing_is_shown_cancelled_and_goes_on(page, world):
    (page.home / "slow").touch()
    late = page.home / "videos" / "2026" / "late.mp4"
    shutil.copy(world.videos / "val_0001.mp4", late)
    page.browser.driver.get(page.address)
    page.browser.wait(lambda: page.browser.run("return $('#library').textContent"), "the index is not ready")
    page.browser.run("$('#index-start').click()")
    page.wait_for("#index-text", "Indexing: 1 of 3 videos, about 1:15 left")
    assert page.text("#index-name") == "2026/first.mp4"
    page.browser.click("#index-stop")
    page.wait_for("#index-text", "Stopped. 4 videos can be searched, 1 cannot yet.")
    page.browser.find("#query").send_keys("the red ring\n")
    page.browser.wait(lambda: len(set(page.names())) == 4, "the videos indexed so far cannot be searched")
    (page.home / "slow").unlink()
    page.browser.click("#index-start")
    page.browser.wait(lambda: page.browser.run("return $('#library').textContent").startswith("5 videos"), "it does not go on")
    assert not page.browser.find("#failed").find_elements("css selector", "li:nth-child(2)")
    page.browser.find("#query").send_keys("\n")
    page.browser.wait(lambda: "2026/late.mp4" in page.names(), "the new video cannot be searched")
    late.unlink()
    page.browser.run("$('#index-start').click()")
    page.browser.wait(lambda: page.browser.run("return $('#library').textContent").startswith("4 videos"), "it is not gone")
    errors = page.browser.console_errors()
    assert all("/library/frames/" in error and "404" in error for error in errors)  # pictures of the video that is gone
    errors.clear()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)], ids=["narrow-dark", "wide-light"])
def test_the_page_has_no_barriers(page, tmp_path, width, dark):
    page.browser.emulate(width=width, dark=dark)
    for state, parameters in {"found": "?q=the+red+ring", "nothing": "?q=absent&within=2026/"}.items():
        page.open(parameters, cards=0)
        page.browser.find(".found")
        # The states that are hidden now are checked as well.
        page.browser.run("showIndex({state: 'running', text: 'Indexing', name: 'a.mp4', done: 1, total: 3})")
        page.browser.run("$$('#below, #show-filters').forEach(one => { one.hidden = false; })")
        page.browser.run("$$('.card .select input').slice(0, 1).forEach(one => one.click())")
        assert page.browser.barriers() == []
        assert page.browser.run("return document.documentElement.scrollWidth") <= width
        lines = page.browser.run("return $$('.about').map(one => one.offsetHeight)")
        assert max(lines, default=0) < 30, "a name or a score needs two lines"
        page.browser.screenshot(tmp_path / f"{state}-{width}-{'dark' if dark else 'light'}.png", width=width)
    page.browser.run("showIndex({state: 'failed', error: 'No disk.', videos: 1, hours: 1, folders: [], failed: [['a', 'b']]})")
    assert page.browser.barriers() == []


@pytest.mark.parametrize("path", ["library/videos/x", "library/videos/..%2fa.mp4", "library/frames/x?at=1", "videos/a.mp4"])
def test_no_other_file_is_served(served, path):
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        urllib.request.urlopen(served[0] + path, timeout=30)
    caught.value.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example"}, 400), ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403)],
)
def test_requests_of_other_sites_are_refused(served, headers, status):
    request = urllib.request.Request(f"{served[0]}library/index/stop", headers=headers, data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match=str(status)) as caught:
        urllib.request.urlopen(request, timeout=30)
    caught.value.close()
