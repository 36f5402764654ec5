"""Real processes, really killed: what the batch gives when a video hangs, crashes its process or fills the slots."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import videos as clips

from costl.pipeline.decode.pool import Chunk, Decoded, Failed, Job, decode_videos
from costl.pipeline.decode.video import Frames
from costl.pipeline.decode.worker import open_video
from costl.pipeline.errors import CostlError, VideoError

SMALL = {"slot_bytes": 40_000, "slots": 2}  # a slot holds four frames of 48 x 64
ROOT = Path(__file__).parents[3]


class Pretend:
    """A stand-in for a video: eight seconds, the k-th sampled frame is a flat grey of k. Its name says how it fails."""

    duration_s, height, width, repaired, decoder = 8.0, 48, 64, 0, "pretend"

    def __init__(self, path: str):
        self.name = Path(path).name
        self._go_wrong("open")

    def __enter__(self) -> Pretend:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rest(self) -> None:
        pass

    def sample(self, wanted_s, chunk):
        for begin in range(0, len(wanted_s), chunk):
            if begin:
                self._go_wrong("later")
            times_s = wanted_s[begin : begin + chunk]
            grey = np.arange(begin, begin + len(times_s), dtype=np.uint8)
            yield Frames(np.tile(grey[:, None, None, None], (1, self.height, self.width, 3)), times_s)

    def _go_wrong(self, when: str) -> None:
        if not self.name.endswith(when):
            return
        if self.name.startswith("hang"):
            time.sleep(1000)
        if self.name.startswith("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.name.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name.startswith("fault"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.name.startswith("refuse"):
            raise VideoError(f"{self.name}: not today.", status="short")
        if self.name.startswith("surprise"):
            raise KeyError("nobody expected this")


class Large(Pretend):
    height, width = 1000, 1000


class GoesWrongAtTheEnd(Pretend):
    """After the last frame, while the video is being closed; short, so that it is late soon."""

    duration_s = 0.2

    def __exit__(self, *_: object) -> None:
        self._go_wrong("later")


class EndsWhenLoaded:
    """Kills the process that unpickles it, before that process is ready."""

    def __reduce__(self):
        return os._exit, (7,)

    def __call__(self, path: str):
        raise AssertionError("never called")


def decoders() -> list[multiprocessing.process.BaseProcess]:
    """Living child processes, but for joblib's, which other tests leave waiting for more work."""
    return [child for child in multiprocessing.active_children() if not child.name.startswith("Loky")]


def jobs(*names: str, fps: float = 2.0) -> list[Job]:
    return [Job(name, name, fps) for name in names]


def run(work: list[Job], **options) -> tuple[dict[str, list[int]], dict[str, Decoded | Failed]]:
    """The greys each video gave, and how each ended."""
    greys: dict[str, list[int]] = {job.video_id: [] for job in work}
    ends: dict[str, Decoded | Failed] = {}
    with decode_videos(work, **{"processes": 2, "open_video": Pretend, **SMALL, **options}) as events:
        for event in events:
            assert event.video_id not in ends, "nothing may follow a video's end"
            if isinstance(event, Chunk):
                assert event.first_index == len(greys[event.video_id])
                greys[event.video_id] += event.pixels[:, 0, 0, 0].tolist()
                event.release()
            else:
                ends[event.video_id] = event
    assert not decoders()
    assert set(ends) == set(greys), "every job ends exactly once"
    return greys, ends


def test_every_video_comes_whole_and_in_order():
    greys, ends = run(jobs(*"abcde"))
    assert all(got == list(range(16)) for got in greys.values())
    assert ends["a"] == Decoded("a", 8.0, 16, 0, "pretend")


@pytest.mark.parametrize("how", ["hang open", "hang later", "stop open", "stop later"])
@pytest.mark.promise(2)
def test_a_video_that_hangs_is_one_timeout_and_the_others_finish(how):
    began = time.monotonic()
    # Four frames at two a second are two seconds of video, so twenty seconds of grace: ask for denser frames.
    greys, ends = run(jobs("a", how, "b", "c", fps=25.0), time_limit_s=1.0)
    assert time.monotonic() - began < 20
    assert isinstance(ends[how], Failed) and ends[how].status == "timeout" and ends[how].reason.startswith(how)
    for name in "abc":
        assert isinstance(ends[name], Decoded) and len(greys[name]) == 200


@pytest.mark.parametrize("how", ["kill open", "kill later", "fault open", "fault later"])
@pytest.mark.promise(2)
def test_a_video_that_kills_its_process_is_one_crash_and_the_others_finish(how):
    _, ends = run(jobs("a", how, "b", how + " ", "c"))
    assert isinstance(ends[how], Failed) and ends[how].status == "crashed"
    assert ("SIGKILL" if how.startswith("kill") else "SIGSEGV") in ends[how].reason
    assert all(isinstance(ends[name], Decoded) for name in "abc")


@pytest.mark.parametrize("how", ["hang later", "kill later", "refuse later"])
def test_a_job_handed_out_ahead_is_done_by_another_process_when_the_one_before_ends_badly(how):
    # One chunk a video: its last frames are here before it goes wrong, and the next job with them.
    greys, ends = run(jobs("a", how, "b", "c", fps=20.0), processes=1, time_limit_s=1.0, open_video=GoesWrongAtTheEnd)
    assert isinstance(ends[how], Failed) and greys[how] == [0, 1, 2, 3]
    assert all(isinstance(ends[name], Decoded) and greys[name] == [0, 1, 2, 3] for name in "abc")


def test_a_chunk_says_how_long_its_video_is_and_how_long_a_slot_was_missing():
    with decode_videos(jobs("a"), processes=1, open_video=Pretend, **SMALL) as events:
        held = [next(events), next(events)]
        threading.Timer(0.5, held[0].release).start()
        third = next(events)
        assert {chunk.clips for chunk in (*held, third)} == {16}
        assert third.waited_s > 0.3 > max(chunk.waited_s for chunk in held)


def test_a_look_comes_between_events_and_while_there_are_none():
    looks = []

    def look():
        looks.append(time.monotonic())
        if len(looks) == 12:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        decode_videos(jobs("hang open"), processes=1, open_video=Pretend, look=look, **SMALL) as events,
    ):
        list(events)
    assert not decoders() and max(np.diff(looks)) < 5


def test_refusals_and_surprises_are_rows_with_their_reason():
    _, ends = run(jobs("refuse open", "surprise later", "a"))
    assert ends["refuse open"] == Failed("refuse open", "short", "refuse open: not today.")
    assert isinstance(ends["surprise later"], Failed) and ends["surprise later"].status == "error"
    assert "KeyError" in ends["surprise later"].reason
    assert isinstance(ends["a"], Decoded)


def test_a_batch_of_nothing_but_crashes_still_ends():
    _, ends = run(jobs(*(f"{k}" for k in range(3)), "kill open"), processes=1)
    assert [type(end) for end in ends.values()] == [Decoded, Decoded, Decoded, Failed]


def test_a_slow_reader_of_the_events_is_no_timeout_and_the_slots_bound_what_is_ahead():
    with decode_videos(jobs("a"), processes=1, open_video=Pretend, time_limit_s=0.5, **SMALL) as events:
        held = [next(events), next(events)]
        assert [chunk.first_index for chunk in held] == [0, 4]
        # Both slots are ours: nothing can come, and nothing is late, however long we keep them.
        thread = threading.Timer(2.0, held[0].release)
        began = time.monotonic()
        thread.start()
        third = next(events)
        assert time.monotonic() - began > 1.5
        assert isinstance(third, Chunk) and third.first_index == 8
        assert third.pixels[0, 0, 0, 0] == 8 and held[1].pixels[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
        thread.join()


def test_a_process_that_is_stopped_while_it_waits_for_a_slot_is_a_timeout():
    with decode_videos(jobs("a", "b"), processes=1, open_video=Pretend, time_limit_s=1.0, **SMALL) as events:
        held = [next(events), next(events)]
        [process] = decoders()
        time.sleep(0.3)  # it has two slots, both are ours: it waits
        os.kill(process.pid, signal.SIGSTOP)
        for chunk in held:
            chunk.release()
        end, *others = events_of(events)
        assert isinstance(end, Failed) and (end.video_id, end.status) == ("a", "timeout")
        assert {event.video_id for event in others} == {"b"} and isinstance(others[-1], Decoded)


def events_of(events):
    for event in events:
        if isinstance(event, Chunk):
            event.release()
        yield event


def test_a_chunk_outlives_the_process_that_made_it():
    with decode_videos(jobs("kill later", "a"), processes=1, open_video=Pretend, **SMALL) as events:
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


def test_a_frame_larger_than_a_slot_is_a_row():
    _, ends = run(jobs("a"), open_video=Large)
    assert isinstance(ends["a"], Failed) and "1000 x 1000" in ends["a"].reason


@pytest.mark.promise(8)
def test_a_video_that_wants_too_much_memory_does_not_take_the_machine():
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux enforces the limit")
    _, ends = run(jobs("a", "b"), open_video=greedy_for_a, memory_limit_bytes=1 << 30)
    assert isinstance(ends["a"], Failed) and "memory" in ends["a"].reason
    assert isinstance(ends["b"], Decoded)


def greedy_for_a(path: str) -> Pretend:
    if path == "a":
        np.ones(2 << 30, dtype=np.uint8)
    return Pretend(path)


def test_a_process_that_cannot_start_stops_the_run():
    with pytest.raises(CostlError, match=r"could not start.*exit code 7"):
        run(jobs("a"), open_video=EndsWhenLoaded())
    assert not decoders()


def test_leaving_by_an_exception_kills_the_processes_at_once():
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        decode_videos(jobs("a", "hang open", "b"), processes=2, open_video=Pretend, **SMALL) as events,
    ):
        assert isinstance(next(events), Chunk)
        workers = decoders()
        assert len(workers) == 2
        raise KeyboardInterrupt
    assert not decoders() and time.monotonic() - began < 20
    assert list(events) == []


def test_no_jobs_start_no_process():
    with decode_videos([], processes=4) as events:
        assert list(events) == [] and not decoders()


def test_the_real_reader_gives_the_frames_of_real_clips(tmp_path):
    paths = [clips.make_clip(tmp_path / f"{k}.mp4", clips.steady(50 + 25 * k)) for k in range(3)]
    (tmp_path / "bad.mp4").write_text("not a video")
    work = [Job(path.stem, str(path), 2.0) for path in [*paths, tmp_path / "bad.mp4"]]
    numbers: dict[str, list[int]] = {}
    ends = {}
    with decode_videos(work, processes=2, open_video=open_video) as events:
        for event in events:
            if isinstance(event, Chunk):
                numbers.setdefault(event.video_id, []).extend(clips.read_numbers(event.pixels))
                event.release()
            else:
                ends[event.video_id] = event
    assert numbers == {str(k): [6, 18, 31, 43, 56, 68, 81, 93][: 4 + 2 * k] for k in range(3)}
    assert ends["bad"].status == "failed" and "text" in ends["bad"].reason
    assert ends["0"].clips == 4 and ends["0"].duration_s == pytest.approx(2.0)
    assert ends["0"].decoder.startswith("decord ")


ORPHAN = """
import sys, time
sys.path[:0] = {paths!r}
from test_pool import Pretend, jobs
from costl.pipeline.decode.pool import decode_videos
import multiprocessing
if __name__ == "__main__":
    with decode_videos(jobs("a", "hang open"), processes=2, open_video=Pretend) as events:
        next(events)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(100)
"""


def test_a_killed_parent_leaves_no_process_no_memory_and_no_words(tmp_path):
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm to look into")
    before = set(os.listdir("/dev/shm"))
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN.format(paths=[str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/pipeline")]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], text=True, **pipes) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
        words = parent.stderr.read()
    for _ in range(100):
        if not any(Path(f"/proc/{child}/cmdline").exists() and _alive(child) for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"still alive: {children}")
    assert words == ""
    assert {name for name in os.listdir("/dev/shm") if name.startswith("pym")} <= before


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
