"""The demo in a browser: uploads, queries, moments, heatmaps and errors. It sends no request to another host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from costl.train import train

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed; it comes with the extra `demo`"),
]
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
    command = [
        sys.executable,
        "-c",
        "from costl.commands import main; main(prog_name='costl')",
        "demo",
        "--videos",
        "videos",
    ]
    command += ["--run", "run", "--cache-dir", "features", "--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(home)}
    with (home / "stderr").open("w") as stderr:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), (home / "stderr").read_text()
            yield url
        finally:
            server.terminate()
            server.wait(30)
            server.stdout.close()
    assert not list(home.glob("costl-demo-*")), "uploads are deleted at the end"


def upload(browser, path: Path) -> None:
    inputs = browser.wait(lambda: browser.all("#costl-upload input[type=file]"), "there is no upload field")
    inputs[0].send_keys(str(path))


def ask(browser, text: str) -> None:
    box = browser.find(QUERY)
    box.clear()
    box.send_keys(text)
    browser.find("#costl-ask").click()


def player_time(browser) -> float:
    return float(browser.run("return document.querySelector('#costl-player video').currentTime"))


def test_clicking_a_moment_of_an_answer_moves_the_player(browser, address, world, tmp_path):
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
    moments[last].click()
    browser.wait(lambda: abs(player_time(browser) - starts[last]) < 0.3, f"the player is not at {starts[last]}")
    heatmap = browser.find(".heatmap")
    assert heatmap.get_attribute("data-rank") == str(last)
    assert browser.run("return arguments[0].querySelector('img').naturalWidth", heatmap) > 50
    curve = browser.find(".curve svg")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", curve)
    curve.click()  # at its centre: half of 24 s
    browser.wait(lambda: abs(player_time(browser) - 12) < 0.5, "a click on the curve does not move the player")
    for width in (390, 1440):
        browser.screenshot(tmp_path / f"demo-{width}.png", width=width)
        page_width = browser.run("return document.documentElement.scrollWidth")
        assert page_width <= width, f"{page_width} pixels on a screen of {width}"
    assert browser.hosts() == {"127.0.0.1"}
    assert browser.console_errors() == []


def test_videos_can_be_chosen_but_not_links_out_of_the_folder(browser, address):
    browser.driver.get(address)
    browser.find("#costl-choice input").click()
    options = "#costl-choice [role=option], ul[role=listbox] li"

    def names() -> list[str]:
        # Not `text`, which is empty during the opening animation.
        return [option.get_attribute("textContent").strip("✓ \n") for option in browser.all(options)]

    browser.wait(lambda: names() == ["broken.mp4", "holiday.mp4"], "the list has not exactly the videos of the folder")
    browser.all(options)[1].click()
    assert browser.find("#costl-player video").get_attribute("aria-label") == "holiday.mp4"
    ask(browser, "the blue star")
    assert browser.find(".answer").get_attribute("data-query") == "the blue star"


def test_an_answer_to_an_old_query_is_never_shown(browser, address, world):
    browser.driver.get(address)
    upload(browser, world.videos / "test_0001.mp4")
    browser.find("#costl-player video")
    ask(browser, "the green heart")
    browser.find(QUERY).send_keys(" is small")  # before the first answer arrives
    browser.find("#costl-ask").click()
    deadline = time.monotonic() + 60
    while not (shown := [e for e in browser.all(".answer") if e.is_displayed()]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert shown[0].get_attribute("data-query") == "the green heart is small"
    browser.find(QUERY).send_keys("!")
    browser.wait(lambda: not any(e.is_displayed() for e in browser.all(".answer")), "the old answer stays")


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
