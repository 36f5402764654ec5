"""The demo without its page: progress, stopping, messages, which files are served, the curve, and the heatmap."""

from __future__ import annotations

import asyncio
import html
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video

from costl.ask.answer import Answer, Moment, Saliency, check_queries
from costl.demo.heatmap import overlay_heatmap
from costl.demo.page import answer_html, player_html, progress_reply
from costl.demo.sessions import DemoSessions
from costl.pipeline.errors import CacheError, CostlError, UsageError, VideoError
from costl.pipeline.progress import Progress, Throughput

SPEED = Throughput(3, 1.0, "CLIP", 0.0, left_s=75)


class SlowAsker:
    """An asker that reports progress until it may answer."""

    def __init__(self):
        self.may_answer = threading.Event()
        self.started = threading.Event()
        self.stopped = threading.Event()
        self.error: Exception | None = None

    def ask(self, video, query, *, progress):
        check_queries([query])
        try:
            while not self.may_answer.is_set():
                progress(Progress("frames", 3, 12, speed=SPEED))
                self.started.set()
                self.may_answer.wait(0.01)
        except BaseException:
            self.stopped.set()
            raise
        if self.error:
            raise self.error
        return [Answer(query, Path(video), 10.0, (Moment(2.0, 4.0, 0.5),), Saliency(2.0, (0.0, 1.0, 3.0, 1.0, 0.0)))]

    def patch_attention(self, video, query, times_s):
        assert times_s == [3.0]
        return []


@pytest.fixture
def sessions(world) -> Iterator[DemoSessions]:
    sessions = DemoSessions(SlowAsker(), folder=world.videos)  # type: ignore[arg-type]
    yield sessions
    sessions.close()


def choose(sessions, name: str) -> str:
    """The key of a video of the folder."""
    return sessions.choose_video(name, None).split('data-video="')[1].split('"')[0]


async def last_reply(sessions, key: str, query: str) -> str:
    async with aclosing(sessions.replies(key, query)) as replies:
        lines = [json.loads(line) async for line in replies]
    return lines[-1]["html"]


@pytest.mark.parametrize(
    ("progress", "text", "bar"),
    [
        (None, "Opening the video", (0, 0)),
        (Progress("load", 0, 1), "Loading CLIP", (0, 0)),
        (Progress("wait", 0, 0, "other.mp4"), "Waiting until another video is extracted", (0, 0)),
        (Progress("frames", 3, 600), "Decoding and encoding: 3 of 600 clips", (3, 600)),
        (Progress("frames", 3, 12, speed=SPEED), "Decoding and encoding: 3 of 12 clips, about 1:15 left", (3, 12)),
        (Progress("videos", 1, 1, video="a", status="ok", speed=SPEED), "Finding moments", (0, 0)),
        (Progress("predict", 0, 1), "Finding moments", (0, 0)),
    ],
)
def test_progress_says_what_is_done(progress, text, bar):
    assert progress_reply(progress) == {"text": text, "done": bar[0], "total": bar[1]}


def test_progress_is_replied_until_the_answer(sessions):
    async def ask() -> list[dict]:
        lines = []
        async for line in sessions.replies(choose(sessions, "test_0000.mp4"), " a cat "):
            lines.append(json.loads(line))
            if lines[-1].get("total"):
                sessions.asker.may_answer.set()
        return lines

    *before, answer = asyncio.run(ask())
    assert before[-1] == progress_reply(Progress("frames", 3, 12, speed=SPEED)) and all("html" not in x for x in before)
    assert 'data-query="a cat"' in answer["html"]


@pytest.mark.parametrize(
    ("leaving", "others", "goes_on"),
    [
        ("test_0000.mp4", [], False),
        ("test_0000.mp4", ["test_0000.mp4"], True),
        ("test_0000.mp4", ["test_0000.mp4", "test_0000.mp4"], True),
        ("test_0000.mp4", ["test_0001.mp4"], False),
    ],
    ids=["alone", "same video in another tab", "in two other tabs", "another tab with another video"],
)
def test_an_extraction_stops_when_nobody_waits_for_it(sessions, leaving, others, goes_on):
    async def leave() -> None:
        first = sessions.replies(choose(sessions, leaving), "a cat")
        await anext(first)
        assert await asyncio.to_thread(sessions.asker.started.wait, 10)
        rest = [sessions.replies(choose(sessions, name), "a dog") for name in others]
        for replies in rest:
            await anext(replies)
        await first.aclose()
        if goes_on:
            for _ in range(3):
                assert "html" not in json.loads(await anext(rest[0]))
            assert not sessions.asker.stopped.is_set()
        else:
            assert await asyncio.to_thread(sessions.asker.stopped.wait, 10)
        sessions.asker.may_answer.set()
        for replies in rest:
            assert 'data-query="a dog"' in [json.loads(line) async for line in replies][-1]["html"]

    asyncio.run(leave())


def test_closing_stops_all_work(sessions):
    async def begin() -> None:
        replies = sessions.replies(choose(sessions, "test_0000.mp4"), "a cat")
        await anext(replies)
        assert await asyncio.to_thread(sessions.asker.started.wait, 10)
        sessions.close()
        assert sessions.asker.stopped.is_set()
        await replies.aclose()

    asyncio.run(begin())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CacheError("different CLIP weights."), "different CLIP weights."),
        (VideoError("{name}: damaged. Replace it."), "{name}: damaged. Replace it. Choose another video"),
        (VideoError("{name}: error: [Errno 22] Invalid argument: '{path}'"), "{name}: error: Invalid argument: '{name}'"),
        (VideoError("no picture."), "{name}: no picture. Choose another video"),
        (OSError(-1094995529, "Invalid data found when processing input", "{path}"), "processing input: '{name}'. Choose"),
        (FileNotFoundError(2, "No such file or directory", "{path}"), "No such file or directory: '{name}'"),
        (RuntimeError("out of frames"), "{name}: out of frames. Choose another video"),
    ],
)
def test_an_error_names_the_file_of_the_user(sessions, tmp_path, capsys, error, message):
    path = tmp_path / "costl-demo-x1" / "0123abcd" / "my holiday.mp4"
    error.args = tuple(a.format(name=path.name, path=path) if isinstance(a, str) else a for a in error.args)
    if isinstance(error, OSError):
        error.filename = str(path)
    sessions.asker.error = error
    sessions.asker.may_answer.set()
    path.parent.mkdir(parents=True)
    shutil.copy(sessions.video_file(choose(sessions, "test_0000.mp4")), path)
    key = sessions.choose_video(None, str(path)).split('data-video="')[1].split('"')[0]
    shown = html.unescape(asyncio.run(last_reply(sessions, key, "a cat")))
    assert message.format(name=path.name) in shown
    assert "Errno" not in shown and "costl-demo-" not in shown and "0123abcd" not in shown
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, CostlError))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("<b>text.mp4", b"not a video", "not a video, its content is text"),
        ("noise.mp4", bytes(range(256)) * 9, "not a video that can be opened"),
        ("empty.mp4", b"", "empty (0 bytes)"),
        ("Füße (1).mov", b"\0\0\0\x18ftypmp42" + bytes(99), "truncated, it has no index"),
    ],
)
def test_a_broken_upload_is_shown_with_its_name_and_what_to_do(sessions, tmp_path, name, content, message):
    path = tmp_path / "0123abcd" / name
    path.parent.mkdir()
    path.write_bytes(content)
    shown = sessions.choose_video(None, str(path))
    assert "<b>text" not in shown and "data-video" not in shown
    assert f"{name}: {message}" in html.unescape(shown) and "Choose another video, or convert this one" in shown
    assert "0123abcd" not in shown and "Errno" not in shown


def test_the_player_knows_where_the_video_starts_in_its_own_time(sessions, tmp_path):
    late = make_video(tmp_path / "late.mkv", frame_times(25, start_s=3.0))
    assert 'data-start="3.0"' in sessions.choose_video(None, str(late))
    assert 'data-start="0.0"' in sessions.choose_video("test_0000.mp4", None)


def test_questions_that_cannot_be_answered_get_a_message(sessions):
    sessions.asker.may_answer.set()
    key = choose(sessions, "test_0000.mp4")
    assert "no letter or digit in it" in asyncio.run(last_reply(sessions, key, "?!"))
    for unknown in ("", "no such key"):
        assert "Choose or upload a video first." in asyncio.run(last_reply(sessions, unknown, "a cat"))


def test_only_videos_of_the_folder_and_uploads_are_served(sessions, world, tmp_path):
    assert "test_0000.mp4" in sessions.video_names() and "test.jsonl" not in sessions.video_names()
    for name in ("../feats.h5", "/etc/passwd", "test.jsonl", "", None):
        assert sessions.choose_video(name, None) == ""
    key, player = choose(sessions, "test_0000.mp4"), sessions.choose_video("test_0000.mp4", None)
    assert choose(sessions, "test_0000.mp4") == key  # chosen again, it does not end a question
    assert sessions.video_file(key) == world.videos.resolve() / "test_0000.mp4" and 'src="videos/' in player
    assert sessions.video_file("") is None and sessions.video_file(key[:-1]) is None
    with pytest.raises(UsageError, match="no such folder"):
        DemoSessions(SlowAsker(), folder=tmp_path / "gone")  # type: ignore[arg-type]


def test_queries_and_keys_are_escaped_in_the_page():
    answer = Answer('"><script>x</script>', Path("v"), 10.0, (Moment(0.0, 1.0, 0.5),), Saliency(2.0, (1.0, 2.0)))
    assert "<script>" not in answer_html(answer, pictures=[]) + player_html('"><script>', "<script>", 0.0)


@pytest.mark.parametrize(
    ("scores", "best", "heights"),
    [
        ((-20.0, -10.0, -15.0), 0.6, (0.0, 0.6, 0.3)),  # a sentence that matches
        ((-20.0, -10.0, -15.0), 0.05, (0.0, 0.05, 0.025)),  # the same shape without a match: flat and low
        ((0.0, 1.0, 0.5), 1.0, (0.0, 1.0, 0.5)),
        ((3.0, 3.0, 3.0), 0.4, (0.4, 0.4, 0.4)),  # all clips alike
        ((3.0,), 0.4, (0.4,)),  # a video of one clip
        ((1.0, 2.0, 3.0), None, (0.0, 0.0, 0.0)),  # no moment
    ],
)
def test_the_curve_has_a_fixed_scale(scores, best, heights):
    moments = () if best is None else (Moment(0.0, 1.0, best / 2), Moment(0.0, 2.0, best))
    shown = answer_html(Answer("a cat", Path("v"), 2.0 * len(scores), moments, Saliency(2.0, scores)), pictures=[])
    text = shown.split('points="')[1].split('"')[0]
    points = [tuple(map(float, point.split(","))) for point in text.split()]
    assert points[0][0] == 0 and points[-1][0] == 2 * len(scores)
    assert [1 - y for _, y in points[1:-1]] == pytest.approx(heights) and "0 not at all, 1 for certain" in shown


def test_the_heatmap_peaks_at_the_largest_weight_inside_the_region():
    weights = np.zeros((4, 4))
    weights[1, 2] = 1.0
    frame = np.full((100, 300, 3), 100, np.uint8)
    red = overlay_heatmap(frame, weights, (1 / 3, 0.0, 1 / 3, 1.0))[..., 0]  # a centre crop: the sides are cut off
    y, x = np.unravel_index(red.argmax(), red.shape)
    assert abs(y - 37.5) <= 1 and abs(x - 162.5) <= 1 and red.max() > 200
    assert set(np.unique(red[:, :100])) == set(np.unique(red[:, 200:])) == {35} and red[0, 100] == 75


def test_the_heatmap_may_reach_beyond_the_frame():
    frame = np.full((100, 300, 3), 100, np.uint8)
    red = overlay_heatmap(frame, np.eye(4)[::-1], (0.0, -1.0, 1.0, 3.0))[..., 0]  # padding above and below
    assert red.shape == (100, 300) and red.min() == 75
    y, x = np.unravel_index(red.argmax(), red.shape)
    assert (y < 50) == (x > 150)
