"""The demo in a browser: uploads, queries, moments, heatmaps and errors. It sends no request to another host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_browser import browser_marks
from preloaded import Preloaded

from costl.pipeline.library.folder import index_folder
from costl.pipeline.library.update import update_library
from costl.train import train

pytestmark = browser_marks("gradio")
QUERY = "#costl-query input, #costl-query textarea"


@pytest.fixture(scope="module")
def address(world, tmp_path_factory) -> Iterator[str]:
    """The address of a running demo of a small run, with one good and one broken video to choose."""
    home = tmp_path_factory.mktemp("demo")
    train(world.cache, overrides=["train.epochs=1"], out=home / "run", device="cpu")
    (home / "videos").mkdir()
    shutil.copy(world.videos / "test_0000.mp4", home / "videos" / "holiday.mp4")
    (home / "videos" / "broken.mp4").write_text("not a video")
    (home / "secret.mp4").write_text("outside")
    (home / "videos" / "link.mp4").symlink_to(home / "secret.mp4")
    # So that the library page has nothing to index.
    update_library(home / "videos", index_folder(home / "videos"), weights=str(world.videos / "clip"), device="cpu", workers=1)
    command = ["-m", "costl", "demo", "--videos", "videos", "--run", "run", "--cache-dir", "features"]
    command += ["--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(home)}
    with (home / "stderr").open("w") as stderr:
        server = Preloaded(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), (home / "stderr").read_text()
            yield f"{url}video/"
        finally:
            server.terminate()
            server.wait(30)
            server.stdout.close()
    assert not list(home.glob("costl-demo-*")), "uploads are deleted at the end"


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """Keeps every core busy."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def upload(browser, path: Path) -> None:
    inputs = browser.wait(lambda: browser.all("#costl-upload input[type=file]"), "there is no upload field")
    inputs[0].send_keys(str(path))


def ask(browser, text: str) -> None:
    box = browser.find(QUERY)
    box.clear()
    box.send_keys(text)
    browser.click("#costl-ask")


def choose(browser, name: str) -> list[str]:
    """Chooses a video from the list, and waits for its player. Returns the names in the list."""
    browser.click("#costl-choice input")
    selector = "#costl-choice [role=option], ul[role=listbox] li"
    options = browser.wait(lambda: browser.all(selector), "the list is empty")
    # Not `text`, which is empty during the opening animation.
    names = [option.get_attribute("textContent").strip("✓ \n") for option in options]
    browser.click(options[names.index(name)])
    browser.wait(lambda: browser.all(f"#costl-player video[aria-label='{name}']"), f"no player of {name}")
    return names


def player_time(browser) -> float:
    return float(browser.run("return document.querySelector('#costl-player video').currentTime"))


def test_clicking_a_moment_of_an_answer_moves_the_player(browser, address, world, tmp_path):
    browser.emulate(width=800, height=450)  # so low that the moments and the player do not fit together
    browser.driver.get(address)
    upload(browser, world.videos / "test_0001.mp4")
    browser.find("#costl-player video")
    ask(browser, "the red ring")
    browser.find(".moment")
    assert browser.find(".answer h3").text == "the red ring"
    moments = browser.all(".moment")
    starts = [float(moment.get_attribute("data-start")) for moment in moments]
    assert 1 <= len(moments) <= 5 and len(browser.all(".curve .mark")) == len(moments)
    last = max(range(len(starts)), key=starts.__getitem__)
    browser.click(moments[last])
    browser.wait(lambda: starts[last] < player_time(browser) < starts[last] + 3, f"the player does not play {starts[last]}")
    top, bottom = browser.run("const box = document.querySelector('video').getBoundingClientRect(); return [box.top, box.bottom]")
    assert 0 <= top < bottom <= browser.run("return innerHeight"), "the player is not in view"
    browser.run("document.querySelector('#costl-player video').pause()")
    heatmap = browser.find(".heatmap")
    assert heatmap.get_attribute("data-rank") == str(last)
    assert browser.run("return arguments[0].querySelector('img').naturalWidth", heatmap) > 50
    curve = browser.find(".curve svg")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", curve)
    browser.click(curve)  # at its centre: half of 24 s
    browser.wait(lambda: 12 <= player_time(browser) < 15, "a click on the curve does not move the player")
    for width in (390, 1440):
        browser.screenshot(tmp_path / f"demo-{width}.png", width=width)
        page_width = browser.run("return document.documentElement.scrollWidth")
        assert page_width <= width, f"{page_width} pixels on a screen of {width}"
    assert browser.hosts() == {"127.0.0.1"}
    assert browser.console_errors() == []


def test_the_library_page_and_the_page_about_one_video_lead_to_each_other(browser, address):
    browser.driver.get(address)
    browser.click("#costl-title nav a")
    browser.find("#query").send_keys("the red ring\n")
    assert "Answered by run" in browser.find(".found").text
    browser.click("nav a:not([aria-current])")
    browser.find(QUERY)
    assert browser.driver.current_url == address


def test_videos_can_be_chosen_but_not_links_out_of_the_folder(browser, address):
    browser.driver.get(address)
    assert choose(browser, "holiday.mp4") == ["broken.mp4", "holiday.mp4"]
    ask(browser, "the blue star")
    assert browser.find(".answer").get_attribute("data-query") == "the blue star"


@pytest.mark.parametrize("pages", [1, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(7200)])])
def test_a_question_that_a_person_types_is_answered(browser, address, busy_cores, pages):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for number in range(pages):
        browser.driver.get(address)
        choose(browser, "holiday.mp4")
        height = browser.find("#costl-player video").rect["height"]
        browser.click(QUERY)
        assert browser.driver.switch_to.active_element == browser.find(QUERY)
        typing = ActionChains(browser.driver)
        for letter in f"the red ring {number}":
            typing = typing.send_keys(letter).pause(0.06)
        typing.pause(0.25).send_keys(Keys.ENTER).perform()
        assert browser.find(QUERY).get_attribute("value") == f"the red ring {number}"
        assert browser.find("#costl-player video").rect["height"] == height, "the page moved while the video was opened"
        assert browser.find(".answer").get_attribute("data-query") == f"the red ring {number}"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1440, True)], ids=["narrow-light", "wide-dark"])
def test_the_page_has_no_barriers(browser, address, tmp_path, width, dark):
    browser.emulate(width=width, dark=dark)
    browser.driver.get(address)
    browser.find("#costl-ask")
    assert browser.barriers() == []
    ask(browser, "the red ring")
    browser.find(".problem")
    assert browser.barriers() == []
    choose(browser, "holiday.mp4")
    browser.click(".moment")
    # The progress is not hidden here, so that it is checked beside the answer.
    browser.run("document.querySelector('.work').hidden = false; document.querySelector('.work span').textContent = 'Decoding'")
    assert browser.barriers() == []
    browser.screenshot(tmp_path / f"demo-{width}-{'dark' if dark else 'light'}.png", width=width)


def test_errors_are_shown_on_the_page(browser, address, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    browser.driver.get(address)
    ask(browser, "a cat")
    assert browser.find(".problem").text == "Choose or upload a video first."
    upload(browser, tmp_path / "notes.mp4")
    browser.wait(lambda: "notes.mp4: not a video, its content is text" in browser.find(".problem").text, "no error message")
    assert not browser.all("#costl-player video")


@pytest.mark.parametrize("path", ["gradio_api/file=/etc/passwd", "videos/x", "videos/..%2fsecret.mp4"])
def test_no_other_file_is_served(address, path):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address + path, timeout=30)
    assert caught.value.code in (403, 404)
    caught.value.close()


def test_a_request_with_a_foreign_host_name_is_refused(address):
    request = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(request, timeout=30)
    caught.value.close()
