"""The demo without its page: which answers are dropped, which files are served, and where the heatmap lies on a frame."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from costl.ask.answer import Answer, Moment, Saliency, check_queries
from costl.demo.heatmap import overlay_heatmap
from costl.demo.page import answer_html
from costl.demo.sessions import DemoSessions
from costl.pipeline.errors import CacheError, UsageError


class SlowAsker:
    """An asker that waits for `may_answer` before it answers."""

    def __init__(self):
        self.may_answer = threading.Event()
        self.started = threading.Event()

    def ask(self, video, query):
        check_queries([query])
        self.started.set()
        assert self.may_answer.wait(10)
        if query == "broken":
            raise CacheError("different CLIP weights.")
        return [Answer(query, Path(video), 10.0, (Moment(2.0, 4.0, 0.5),), Saliency(2.0, (0.0, 1.0, 3.0, 1.0, 0.0)))]

    def patch_attention(self, video, query, times_s):
        assert times_s == [3.0]
        return []


@pytest.fixture
def sessions(world) -> DemoSessions:
    return DemoSessions(SlowAsker(), folder=world.videos)  # type: ignore[arg-type]


def in_thread(work) -> tuple[threading.Thread, list]:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_only_the_answer_to_a_replaced_query_is_dropped(sessions):
    key, _ = sessions.choose_video("test_0000.mp4", None)
    first_thread, first_answers = in_thread(lambda: sessions.answer("first", key, "a cat"))
    assert sessions.asker.started.wait(10)
    second_thread, second_answers = in_thread(lambda: sessions.answer("second", key, "a cat"))
    sessions.drop_pending("first")
    sessions.asker.may_answer.set()
    first_thread.join()
    second_thread.join()
    assert first_answers == [None] and 'data-query="a cat"' in second_answers[0]
    assert 'data-query="a dog"' in sessions.answer("first", key, " a dog ")


def test_every_error_becomes_a_message_on_the_page(sessions, tmp_path):
    sessions.asker.may_answer.set()
    key, _ = sessions.choose_video("test_0000.mp4", None)
    assert "different CLIP weights." in sessions.answer("first", key, "broken")
    assert "no letter or digit in it" in sessions.answer("first", key, "?!")
    assert "Choose or upload a video first." in sessions.answer("first", "no such key", "a cat")
    (tmp_path / "<b>text.mp4").write_text("not a video")
    key, message = sessions.choose_video(None, str(tmp_path / "<b>text.mp4"))
    assert key == "" and "&lt;b&gt;" in message and "<b>text" not in message


def test_only_videos_of_the_folder_and_uploads_are_served(sessions, world, tmp_path):
    assert "test_0000.mp4" in sessions.video_names() and "test.jsonl" not in sessions.video_names()
    for name in ("../feats.h5", "/etc/passwd", "test.jsonl", "", None):
        assert sessions.choose_video(name, None) == ("", "")
    key, player = sessions.choose_video("test_0000.mp4", None)
    assert sessions.video_file(key) == world.videos.resolve() / "test_0000.mp4" and f'src="videos/{key}"' in player
    assert sessions.video_file("") is None and sessions.video_file(key[:-1]) is None
    with pytest.raises(UsageError, match="no such folder"):
        DemoSessions(SlowAsker(), folder=tmp_path / "gone")  # type: ignore[arg-type]


def test_queries_and_keys_are_escaped_in_the_page():
    answer = Answer('"><script>x</script>', Path("v"), 10.0, (Moment(0.0, 1.0, 0.5),), Saliency(2.0, (1.0, 2.0)))
    assert "<script>" not in answer_html(answer, key='"><script>', pictures=[])


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
