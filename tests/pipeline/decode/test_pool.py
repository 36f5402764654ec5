"""Decoding in real processes: what a batch returns when a video hangs, kills its process or fills the slots."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_video import FakeVideo, fake_videos
from numbered_videos import frame_times, make_video, read_numbers

from costl.pipeline.decode.pool import Chunk, Decoded, Failed, decode_videos
from costl.pipeline.decode.worker import DecodeSettings
from costl.pipeline.errors import CostlError
from costl.pipeline.videos import Video

# A slot holds four frames of 48 x 64.
SMALL = DecodeSettings(fps=2.0, slot_bytes=40_000, slots=2, open_video=FakeVideo)
ROOT = Path(__file__).parents[3]


class LargeVideo(FakeVideo):
    height, width = 1000, 1000


class FailsWhenClosed(FakeVideo):
    """Fails after the last frame, while the video is being closed. It is short, so that its time limit is short."""

    duration_s = 0.2

    def __exit__(self, *_: object) -> None:
        self._fail_if_named("later")


class ExitsWhenUnpickled:
    """Kills the process that unpickles it, before that process is ready."""

    def __reduce__(self):
        return os._exit, (7,)

    def __call__(self, path: Path, options: object):
        raise AssertionError("never called")


def decode_processes() -> list[multiprocessing.process.BaseProcess]:
    """Running child processes, without joblib's, which other tests leave waiting for more work."""
    return [child for child in multiprocessing.active_children() if not child.name.startswith("Loky")]


def run(batch: list[Video], *, processes: int = 2, **changes) -> tuple[dict[str, list[int]], dict[str, Decoded | Failed]]:
    """(the grey levels of each video's frames, the event that ended each video)."""
    greys: dict[str, list[int]] = {video.id: [] for video in batch}
    ends: dict[str, Decoded | Failed] = {}
    with decode_videos(batch, replace(SMALL, **changes), processes=processes) as events:
        for event in events:
            assert event.video_id not in ends, "no event may follow a video's end"
            if isinstance(event, Chunk):
                assert event.first_index == len(greys[event.video_id])
                greys[event.video_id] += event.pixels[:, 0, 0, 0].tolist()
                event.release()
            else:
                ends[event.video_id] = event
    assert not decode_processes()
    assert set(ends) == set(greys), "every job ends exactly once"
    return greys, ends


def test_every_video_returns_all_its_frames_in_order():
    greys, ends = run(fake_videos(*"abcde"))
    assert all(levels == list(range(16)) for levels in greys.values())
    assert ends["a"] == Decoded("a", 0.0, 8.0, 16, 0, "fake")


@pytest.mark.parametrize("failing", ["hang open", "hang later", "stop open", "stop later"])
@pytest.mark.promise(2)
def test_a_video_that_hangs_is_one_timeout_and_the_others_finish(failing):
    began_s = time.monotonic()
    # A chunk of four frames covers two seconds at 2 fps, which allows 20 s more; at 25 fps it is 1.6 s.
    greys, ends = run(fake_videos("a", failing, "b", "c"), fps=25.0, time_limit_s=1.0)
    assert time.monotonic() - began_s < 20
    assert isinstance(ends[failing], Failed) and ends[failing].status == "timeout"
    assert ends[failing].reason.startswith(failing)
    for name in "abc":
        assert isinstance(ends[name], Decoded) and len(greys[name]) == 200


@pytest.mark.parametrize("failing", ["kill open", "kill later", "fault open", "fault later"])
@pytest.mark.promise(2)
def test_a_video_that_kills_its_process_crashes_and_the_others_finish(failing):
    _, ends = run(fake_videos("a", failing, "b", failing + " ", "c"))
    assert isinstance(ends[failing], Failed) and ends[failing].status == "crashed"
    assert ("SIGKILL" if failing.startswith("kill") else "SIGSEGV") in ends[failing].reason
    assert all(isinstance(ends[name], Decoded) for name in "abc")


@pytest.mark.parametrize("failing", ["hang later", "kill later", "refuse later"])
def test_a_job_assigned_ahead_is_done_even_if_the_one_before_it_fails(failing):
    # Each video is one chunk: the next job is assigned with its last frames, before it fails.
    videos = fake_videos("a", failing, "b", "c")
    greys, ends = run(videos, fps=20.0, processes=1, time_limit_s=1.0, open_video=FailsWhenClosed)
    assert isinstance(ends[failing], Failed) and greys[failing] == [0, 1, 2, 3]
    assert all(isinstance(ends[name], Decoded) and greys[name] == [0, 1, 2, 3] for name in "abc")


def test_a_chunk_has_the_length_of_its_video_and_the_wait_for_a_slot():
    with decode_videos(fake_videos("a"), processes=1, settings=SMALL) as events:
        held = [next(events), next(events)]
        threading.Timer(0.5, held[0].release).start()
        third = next(events)
        assert {chunk.clips for chunk in (*held, third)} == {16}
        assert third.waited_s > 0.3 > max(chunk.waited_s for chunk in held)


def test_the_check_runs_between_events_and_while_there_are_none():
    check_times_s = []

    def check():
        check_times_s.append(time.monotonic())
        if len(check_times_s) == 12:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        decode_videos(fake_videos("hang open"), processes=1, settings=SMALL, check=check) as events,
    ):
        list(events)
    assert not decode_processes() and max(np.diff(check_times_s)) < 5


def test_refused_videos_and_unexpected_errors_give_their_reason():
    _, ends = run(fake_videos("refuse open", "surprise later", "a"))
    assert ends["refuse open"] == Failed("refuse open", "short", "refuse open: not today.")
    assert isinstance(ends["surprise later"], Failed) and ends["surprise later"].status == "error"
    assert "KeyError" in ends["surprise later"].reason
    assert isinstance(ends["a"], Decoded)


def test_a_batch_whose_last_video_crashes_still_ends():
    _, ends = run(fake_videos(*(f"{k}" for k in range(3)), "kill open"), processes=1)
    assert [type(end) for end in ends.values()] == [Decoded, Decoded, Decoded, Failed]


def test_slow_consumers_cause_no_timeout_and_slots_bound_what_is_ahead():
    with decode_videos(fake_videos("a"), processes=1, settings=replace(SMALL, time_limit_s=0.5)) as events:
        held = [next(events), next(events)]
        assert [chunk.first_index for chunk in held] == [0, 4]
        # Both slots are in use: no chunk can arrive, and none is late, however long they are not released.
        thread = threading.Timer(2.0, held[0].release)
        began_s = time.monotonic()
        thread.start()
        third = next(events)
        assert time.monotonic() - began_s > 1.5
        assert isinstance(third, Chunk) and third.first_index == 8
        assert third.pixels[0, 0, 0, 0] == 8 and held[1].pixels[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
        thread.join()


def test_a_process_stopped_while_it_waits_for_a_slot_is_a_timeout():
    with decode_videos(fake_videos("a", "b"), processes=1, settings=replace(SMALL, time_limit_s=1.0)) as events:
        held = [next(events), next(events)]
        [process] = decode_processes()
        time.sleep(0.3)  # both of its slots are in use: it waits
        os.kill(process.pid, signal.SIGSTOP)
        for chunk in held:
            chunk.release()
        end, *others = release_all(events)
        assert isinstance(end, Failed) and (end.video_id, end.status) == ("a", "timeout")
        assert {event.video_id for event in others} == {"b"} and isinstance(others[-1], Decoded)


def release_all(events):
    """The events, each chunk released."""
    for event in events:
        if isinstance(event, Chunk):
            event.release()
        yield event


def test_a_chunk_stays_valid_after_its_process_has_died():
    with decode_videos(fake_videos("kill later", "a"), processes=1, settings=SMALL) as events:
        first = next(events)
        assert isinstance(first, Chunk) and isinstance(next(events), Failed)
        greys = []
        for event in events:
            if isinstance(event, Chunk):
                greys += event.pixels[:, 0, 0, 0].tolist()
                event.release()
            assert first.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert greys == list(range(16))
        first.release()
        first.release()


def test_a_frame_larger_than_a_slot_is_refused():
    _, ends = run(fake_videos("a"), open_video=LargeVideo)
    assert isinstance(ends["a"], Failed) and "1000 x 1000" in ends["a"].reason


@pytest.mark.promise(8)
def test_a_video_that_needs_too_much_memory_fails_alone():
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux enforces the limit")
    _, ends = run(fake_videos("a", "b"), open_video=open_with_much_memory_for_a, memory_limit_bytes=1 << 30)
    assert isinstance(ends["a"], Failed) and "memory" in ends["a"].reason
    assert isinstance(ends["b"], Decoded)


def open_with_much_memory_for_a(path: Path, options: object) -> FakeVideo:
    if path.name == "a":
        np.ones(2 << 30, dtype=np.uint8)
    return FakeVideo(path)


def test_a_process_that_cannot_start_stops_the_run():
    with pytest.raises(CostlError, match=r"could not start.*exit code 7"):
        run(fake_videos("a"), open_video=ExitsWhenUnpickled())
    assert not decode_processes()


def test_leaving_by_an_exception_kills_the_processes_at_once():
    began_s = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        decode_videos(fake_videos("a", "hang open", "b"), processes=2, settings=SMALL) as events,
    ):
        assert isinstance(next(events), Chunk)
        workers = decode_processes()
        assert len(workers) == 2
        raise KeyboardInterrupt
    assert not decode_processes() and time.monotonic() - began_s < 20
    assert list(events) == []


def test_without_jobs_no_process_starts():
    with decode_videos([], SMALL, processes=4) as events:
        assert list(events) == [] and not decode_processes()


def test_the_default_decoder_returns_the_frames_of_real_files(tmp_path):
    paths = [make_video(tmp_path / f"{k}.mp4", frame_times(50 + 25 * k)) for k in range(3)]
    (tmp_path / "bad.mp4").write_text("not a video")
    videos = [Video(path.stem, path) for path in [*paths, tmp_path / "bad.mp4"]]
    numbers: dict[str, list[int]] = {}
    ends = {}
    with decode_videos(videos, DecodeSettings(fps=2.0), processes=2) as events:
        for event in events:
            if isinstance(event, Chunk):
                numbers.setdefault(event.video_id, []).extend(read_numbers(event.pixels))
                event.release()
            else:
                ends[event.video_id] = event
    assert numbers == {str(k): [6, 18, 31, 43, 56, 68, 81, 93][: 4 + 2 * k] for k in range(3)}
    assert ends["bad"].status == "failed" and "text" in ends["bad"].reason
    assert ends["0"].clips == 4 and ends["0"].duration_s == pytest.approx(2.0)
    assert ends["0"].decoder.startswith("decord ")


PARENT_SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
from fake_video import FakeVideo, fake_videos
from costl.pipeline.decode.pool import decode_videos
from costl.pipeline.decode.worker import DecodeSettings
import multiprocessing
if __name__ == "__main__":
    settings = DecodeSettings(fps=2.0, open_video=FakeVideo)
    with decode_videos(fake_videos("a", "hang open"), settings, processes=2) as events:
        next(events)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(100)
"""


def test_a_killed_parent_leaves_no_process_memory_or_output(tmp_path):
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm to look into")
    before = set(os.listdir("/dev/shm"))
    script = tmp_path / "parent.py"
    script.write_text(PARENT_SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests" / "helpers")]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], text=True, **pipes) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
        output = parent.stderr.read()
    for _ in range(100):
        if not any(_is_running(child) for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"still running: {children}")
    assert output == ""
    assert {name for name in os.listdir("/dev/shm") if name.startswith("pym")} <= before


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
