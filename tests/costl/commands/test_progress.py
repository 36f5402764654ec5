"""The progress of a command on a terminal, in a log, and as JSON events."""

from __future__ import annotations

import io
import json
import sys

import pytest

from costl.commands import progress_bars as progress
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.inspect import group_by_reason
from costl.pipeline.progress import Progress, Throughput, TrainingSpeed

SPEED = Throughput(frames=75, frames_per_s=290.4, waiting_for="decode", waiting=0.934, left_s=7802.4)
SPEED_TEXT = "290 frames/s, waiting for decode 93 %, 2:10:02 left"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def videos(done: int, *, speed: Throughput = SPEED, **more: str) -> Progress:
    return Progress("videos", done, 10_148, speed=speed, **more)


def test_the_bar_shows_the_speed_within_one_long_video(monkeypatch):
    terminal = use_terminal(monkeypatch)
    with progress.ProgressBars() as show_progress:
        for second, left_s in enumerate((60.0, 59.0, 58.0)):
            show_progress(
                Progress("frames", 32, 9000, "long.mp4", speed=Throughput(32, 30 + second, "CLIP", 0.5, left_s))
            )
    drawn = terminal.getvalue()
    assert all(f"32/9000 [00:00, {n} frames/s, waiting for CLIP 50 %" in drawn for n in (30, 31, 32)), drawn


def test_the_bar_of_an_extraction_shows_count_speed_and_time_left(monkeypatch):
    terminal = use_terminal(monkeypatch)
    with progress.ProgressBars() as show_progress:
        show_progress(videos(3))
        show_progress(videos(4, video="a", status="ok"))
        show_progress(videos(4))
    assert f"4/10148 [00:00, {SPEED_TEXT}]" in terminal.getvalue()


def test_the_bar_of_a_training_shows_loss_speed_and_time_left(monkeypatch):
    terminal = use_terminal(monkeypatch)
    before = "epoch 1: loss 4.213, MR-full-mAP 11.0"
    with progress.ProgressBars() as show_progress:
        show_progress(Progress("train", 40, 7200, "epoch 1", speed=TrainingSpeed(1, 5.25)))
        speed = TrainingSpeed(2, 3.0625, queries_per_s=41.27, left_s=602.2, before=before)
        show_progress(Progress("train", 4000, 7200, before, speed=speed))
    drawn = terminal.getvalue()
    assert "40/7200 [00:00, epoch 1: loss 5.250]" in drawn
    assert f"4000/7200 [00:00, epoch 2: loss 3.062, 41.3 queries/s, 0:10:02 left ({before})]" in drawn


def test_a_log_gets_one_line_per_interval(capsys, monkeypatch):
    with progress.ProgressBars() as show_progress:
        for done in range(1000):
            show_progress(videos(done))
            show_progress(videos(done, video=f"v{done}", status="ok"))
    assert capsys.readouterr().err == "videos ...\n"
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.ProgressBars() as show_progress:
        show_progress(videos(5))
    assert capsys.readouterr().err == f"videos ...\nvideos: 5 of 10148, {SPEED_TEXT}\n"


def test_silent_progress_still_prints_messages(capsys):
    with progress.ProgressBars(silent=True) as show_progress:
        show_progress(videos(1))
        show_progress(videos(1, message="cuda:0 is full: 256 frames at once become 128 from here on."))
    assert capsys.readouterr().err == "cuda:0 is full: 256 frames at once become 128 from here on.\n"


def test_json_events_are_limited_to_one_a_second(capsys):
    forwarded: list[Progress] = []
    events = progress.ProgressEvents(forwarded.append)
    reports = [Progress("load", 0, 1), *(videos(0) for _ in range(50)), videos(1, video="a", status="ok", detail="a")]
    reports += [videos(2, video="b", status="timeout", detail="b.mp4: hangs."), videos(2, message="a message")]
    for report in reports:
        events(report)
    assert list(map(json.loads, capsys.readouterr().out.splitlines())) == [
        {"event": "progress", "stage": "load", "done": 0, "total": 1, "flow": None},
        {"event": "progress", "stage": "videos", "done": 0, "total": 10_148, "flow": vars(SPEED)},
        {"event": "video", "name": "a", "status": "ok", "reason": ""},
        {"event": "video", "name": "b", "status": "timeout", "reason": "b.mp4: hangs."},
        {"event": "note", "text": "a message"},
    ]
    assert forwarded == reports


def test_failures_are_grouped_by_reason_ignoring_names_and_numbers():
    rows = [
        VideoRow(f"{n}", "failed", f"v.{n}", reason=f"v.{n}.mp4: one frame of {n} x 90 is too big.") for n in range(5)
    ]
    rows.insert(2, VideoRow("x", "timeout", "x", reason="x.mkv: the decoder hangs."))
    rows.append(VideoRow("y", "timeout", "y", reason="one frame of 1 x 90 is too big."))
    assert group_by_reason(rows) == [
        "    5 failed: one frame of 0 x 90 is too big. (v.0, v.1, v.2, v.3, v.4)",
        "    1 timeout: the decoder hangs. (x)",
        "    1 timeout: one frame of 1 x 90 is too big. (y)",
    ]
    assert group_by_reason([]) == []
