"""The demo without its page: who waits for which answer, which files are served, and where heat lies on a frame."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.asker import Look
from costl.demo.page import answer_html, heat_over
from costl.demo.sessions import Desk
from costl.pipeline.errors import CacheError, UsageError


class Slow:
    """An asker that answers when it is let."""

    def __init__(self):
        self.let, self.asked = threading.Event(), threading.Event()

    def ask(self, video, query):
        self.asked.set()
        assert self.let.wait(10)
        if query == "broken":
            raise CacheError("the CLIP is another.")
        return [Answer(query, Path(video), 10.0, (Moment(2.0, 4.0, 0.5),), Saliency(2.0, (0.0, 1.0, 3.0, 1.0, 0.0)))]

    def looks(self, video, query, at_s):
        assert at_s == [3.0]
        return []


@pytest.fixture
def desk(world) -> Desk:
    return Desk(Slow(), folder=world.videos, max_minutes=1)  # type: ignore[arg-type]


def in_thread(work) -> tuple[threading.Thread, list]:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_the_answer_of_an_older_question_is_dropped_and_others_are_not(desk):
    key, _ = desk.take("test_0000.mp4", None)
    mine, found = in_thread(lambda: desk.answer("me", key, "a cat"))
    assert desk.asker.asked.wait(10)
    theirs, kept = in_thread(lambda: desk.answer("somebody else", key, "a cat"))
    desk.changed("me")
    desk.asker.let.set()
    mine.join()
    theirs.join()
    assert found == [None] and 'data-query="a cat"' in kept[0]
    assert 'data-query="a dog"' in desk.answer("me", key, " a dog ")


def test_what_goes_wrong_is_a_sentence(desk, tmp_path):
    desk.asker.let.set()
    key, _ = desk.take("test_0000.mp4", None)
    assert "the CLIP is another." in desk.answer("me", key, "broken")
    assert "no letter in it" in desk.answer("me", key, "?!")
    assert "Choose or upload a video first." in desk.answer("me", "no such key", "a cat")
    (tmp_path / "<b>text.mp4").write_text("no video")
    key, said = desk.take(None, str(tmp_path / "<b>text.mp4"))
    assert key == "" and "&lt;b&gt;" in said and "<b>text" not in said


def test_only_videos_of_the_folder_and_uploads_are_served(desk, world, tmp_path):
    assert "test_0000.mp4" in desk.names() and "test.jsonl" not in desk.names()
    for name in ("../feats.h5", "/etc/passwd", "test.jsonl", "", None):
        assert desk.take(name, None) == ("", "")
    key, player = desk.take("test_0000.mp4", None)
    assert desk.file(key) == world.videos.resolve() / "test_0000.mp4" and f'src="videos/{key}"' in player
    assert desk.file("") is None and desk.file(key[:-1]) is None
    with pytest.raises(UsageError, match="no such folder"):
        Desk(Slow(), folder=tmp_path / "gone", max_minutes=1)  # type: ignore[arg-type]


def test_a_video_that_is_too_long_is_refused_in_a_sentence(world):
    desk = Desk(Slow(), folder=world.videos, max_minutes=0.1)  # type: ignore[arg-type]
    key, said = desk.take("test_0000.mp4", None)
    assert key == "" and "at most 0.1 are taken here" in said


def test_queries_and_names_cannot_smuggle_html_into_the_page():
    answer = Answer('"><script>x</script>', Path("v"), 10.0, (Moment(0.0, 1.0, 0.5),), Saliency(2.0, (1.0, 2.0)))
    assert "<script>" not in answer_html(answer, key='"><script>', shown=[])


@pytest.mark.parametrize(
    ("mode", "frame", "box"),
    [
        ("shortest", (100, 300), (0, 100, 100, 200)),  # the sides are cut away
        ("shortest", (300, 100), (100, 0, 200, 100)),
        ("squash", (100, 300), (0, 0, 100, 300)),
        ("longest", (100, 300), (-100, 0, 200, 300)),  # above and below is padding
    ],
)
def test_the_patches_lie_where_clip_saw_the_frame(mode, frame, box):
    look = Look(0.0, np.full((4, 4), 1 / 16), {"size": [160, 160], "resize_mode": mode})
    assert look.box(*frame) == pytest.approx(box)


def test_heat_is_hottest_where_the_share_is_and_nowhere_outside_the_box():
    share = np.zeros((4, 4))
    share[1, 2] = 1.0
    heated = heat_over(np.zeros((100, 300, 3), np.uint8), share, (0, 100, 100, 200))[..., 0]
    y, x = np.unravel_index(heated.argmax(), heated.shape)
    assert abs(y - 37.5) <= 1 and abs(x - 162.5) <= 1
    assert heated[:, :100].max() == heated[:, 200:].max() == 0
