"""What is on screen at a time of CoSTL is what a browser shows at this `currentTime` after the browser's own start."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numbered_videos import draw_number, frame_times, make_video, read_number, read_numbers

from costl.pipeline.decode.backends import open_video
from costl.pipeline.preview.cut import browser_start_s

pytestmark = pytest.mark.browser

WANTED_S = [0.55, 2.05, 3.55, 4.05, 5.25]
# A blob can be sought in, which needs range requests otherwise.
LOAD = """
const [address, done] = arguments, video = document.querySelector("video");
video.onerror = () => done(video.error.message);
video.onloadeddata = () => done("loaded");
fetch(address).then(response => response.blob()).then(blob => { video.src = URL.createObjectURL(blob); });
"""
# The pixels [height width 4] on screen after a seek to a time.
PIXELS_AT = """
const [time, done] = arguments, video = document.querySelector("video");
const draw = () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    done(Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data));
};
video.onseeked = () => requestAnimationFrame(() => requestAnimationFrame(draw));  // until the new frame is on screen
video.currentTime = time;
"""


@pytest.fixture
def site(tmp_path) -> Iterator[str]:
    """The address of a server of the files in tmp_path."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "first_s", "options"),
    [
        ("late.webm", 3.0, {"codec": "libvpx", "audio": "libopus", "ticks": 1000}),
        ("late.mp4", 3.0, {"audio": True}),
        ("late.mkv", 3.0, {"codec": "libvpx", "audio": "libopus", "ticks": 1000}),
        ("silent.webm", 3.0, {"codec": "libvpx", "ticks": 1000}),
        ("on_time.mp4", 0.0, {"audio": True}),
        ("silent.mp4", 3.0, {}),
    ],
)
def test_a_browser_shows_the_same_frames(browser, site, tmp_path, name, first_s, options):
    make_video(tmp_path / name, frame_times(60, 10.0, first_s), **options)
    (tmp_path / "page.html").write_text('<video muted preload="auto"></video>', encoding="utf-8")
    browser.driver.get(f"{site}/page.html")
    assert browser.driver.execute_async_script(LOAD, name) == "loaded"
    start_s = browser_start_s(tmp_path / name)
    assert start_s == pytest.approx(first_s if name.startswith("silent") else 0.0, abs=0.015)  # Opus: see test_time_zero.py
    shown = [_number(browser.driver.execute_async_script(PIXELS_AT, start_s + time_s)) for time_s in WANTED_S]
    with open_video(tmp_path / name) as video:
        expected = read_numbers(np.concatenate([frames.pixels for frames in video.sample(WANTED_S)]))
        first = sum(time_s < video.picture_start_s for time_s in WANTED_S)
    assert shown[first:] == expected[first:]  # before the first picture a browser shows nothing or the first picture


def _number(rgba: list[int]) -> int:
    height, width = draw_number(0).shape[:2]
    return read_number(np.array(rgba, np.uint8).reshape(height, width, 4)[..., :3])
