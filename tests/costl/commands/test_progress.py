"""What a person, a log and a machine see of an extraction while it goes on."""

from __future__ import annotations

import io
import json
import sys

import pytest

from costl.commands import progress
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.inspect import by_reason
from costl.pipeline.progress import Flow, Pace, Progress

FLOW = Flow(frames=75, frames_per_s=290.4, waiting_for="decode", waiting=0.934, left_s=7802.4)
IN_WORDS = "290 frames/s, waiting for decode 93 %, 2:10:02 left"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def terminal_in(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def videos(done: int, *, flow: Flow = FLOW, **more: str) -> Progress:
    return Progress("videos", done, 10_148, flow=flow, **more)


def test_the_bar_of_one_long_video_lives(monkeypatch):
    terminal = terminal_in(monkeypatch)
    with progress.Bars() as show:
        for second, left_s in enumerate((60.0, 59.0, 58.0)):
            show(Progress("frames", 32, 9000, "long.mp4", flow=Flow(32, 30 + second, "CLIP", 0.5, left_s)))
    drawn = terminal.getvalue()
    assert all(f"32/9000 [00:00, {n} frames/s, waiting for CLIP 50 %" in drawn for n in (30, 31, 32)), drawn


def test_the_bar_of_many_videos_says_how_many_how_fast_who_waits_and_how_long(monkeypatch):
    terminal = terminal_in(monkeypatch)
    with progress.Bars() as show:
        show(videos(3))
        show(videos(4, video="a", status="ok"))
        show(videos(4))
    assert f"4/10148 [00:00, {IN_WORDS}]" in terminal.getvalue()


def test_the_bar_of_a_training_says_the_loss_how_fast_and_how_long(monkeypatch):
    terminal, before = terminal_in(monkeypatch), "epoch 1: loss 4.213, MR-full-mAP 11.0"
    with progress.Bars() as show:
        show(Progress("train", 40, 7200, "epoch 1", flow=Pace(1, 5.25)))
        pace = Pace(2, 3.0625, queries_per_s=41.27, left_s=602.2, before=before)
        show(Progress("train", 4000, 7200, before, flow=pace))
    drawn = terminal.getvalue()
    assert "40/7200 [00:00, epoch 1: loss 5.250]" in drawn
    assert f"4000/7200 [00:00, epoch 2: loss 3.062, 41.3 queries/s, 0:10:02 left ({before})]" in drawn


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    with progress.Bars() as show:
        for done in range(1000):
            show(videos(done))
            show(videos(done, video=f"v{done}", status="ok"))
    assert capsys.readouterr().err == "videos ...\n"
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.Bars() as show:
        show(videos(5))
    assert capsys.readouterr().err == f"videos ...\nvideos: 5 of 10148, {IN_WORDS}\n"


def test_silence_keeps_the_words_that_must_be_read(capsys):
    with progress.Bars(silent=True) as show:
        show(videos(1))
        show(videos(1, word="cuda:0 is full: 256 frames at once become 128 from here on."))
    assert capsys.readouterr().err == "cuda:0 is full: 256 frames at once become 128 from here on.\n"


def test_machines_get_events_and_not_too_many(capsys):
    handed_on: list[Progress] = []
    events = progress.Events(handed_on.append)
    told = [Progress("load", 0, 1), *(videos(0) for _ in range(50)), videos(1, video="a", status="ok", detail="a")]
    told += [videos(2, video="b", status="timeout", detail="b.mp4: hangs."), videos(2, word="a word")]
    for one in told:
        events(one)
    assert list(map(json.loads, capsys.readouterr().out.splitlines())) == [
        {"event": "progress", "stage": "load", "done": 0, "total": 1, "flow": None},
        {"event": "progress", "stage": "videos", "done": 0, "total": 10_148, "flow": vars(FLOW)},
        {"event": "video", "name": "a", "status": "ok", "reason": ""},
        {"event": "video", "name": "b", "status": "timeout", "reason": "b.mp4: hangs."},
        {"event": "note", "text": "a word"},
    ]
    assert handed_on == told


def test_failures_are_counted_by_reason_whatever_the_file_and_the_numbers():
    rows = [
        VideoRow(f"{n}", "failed", f"v.{n}", reason=f"v.{n}.mp4: one frame of {n} x 90 is too big.") for n in range(5)
    ]
    rows.insert(2, VideoRow("x", "timeout", "x", reason="x.mkv: the decoder hangs."))
    rows.append(VideoRow("y", "timeout", "y", reason="one frame of 1 x 90 is too big."))
    assert by_reason(rows) == [
        "    5 failed: one frame of 0 x 90 is too big. (v.0, v.1, v.2 and 2 more)",
        "    1 timeout: the decoder hangs. (x)",
        "    1 timeout: one frame of 1 x 90 is too big. (y)",
    ]
    assert by_reason([]) == []
