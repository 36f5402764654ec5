"""Neither half waits for the other but for want of room; what is in flight is bounded; no order changes a token."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cache import contents, parts_folder
from test_pool import Pretend

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Decoded, decode_videos
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.options import Effort, How
from costl.pipeline.progress import Progress
from costl.pipeline.run import engine as encoding
from costl.pipeline.run.batches import Stretch
from costl.pipeline.run.encoder_thread import batch_that_fits
from costl.pipeline.run.engine import extract_into
from costl.pipeline.run.meter import Meter
from costl.pipeline.run.saver_thread import UNSAVED, Saver
from costl.pipeline.videos import Video

FPS, FRAMES = 25.0, 200  # a pretended video has eight seconds; frame k is a flat grey of k
PROCESSES, SLOTS, IN_A_SLOT = 2, 2, 4
BATCH = 8


class Grey:
    """A device that writes each frame's grey into its tokens; `before` is called with the frames of every batch."""

    device, precision = torch.device("cpu"), "fp32"

    def __init__(self, before=lambda images: None):
        self.batches: list[int] = []
        self._before = before

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(pixels[:, :1, :1])).permute(0, 3, 1, 2).float()

    def start(self, images: torch.Tensor):
        self._before(images)
        self.batches.append(len(images))
        tokens = images[:, 0, 0, 0].numpy().astype(np.float16)
        return lambda: np.broadcast_to(tokens[:, None, None], (len(tokens), 7, 8))


class Decoding:
    """Stands in for `decode_videos`: the same with pretended videos, while it counts what has come and is not released."""

    def __init__(self):
        self.events: list = []
        self.held = self.most_held = 0
        self._lock, self._new = threading.Lock(), threading.Condition()

    @contextmanager
    def __call__(self, jobs, **options):
        small = {"open_video": Pretend, "slot_bytes": IN_A_SLOT * 48 * 64 * 3, "slots": SLOTS}
        with decode_videos(jobs, **(options | small)) as events:
            yield map(self._count, events)

    def wait_for(self, enough) -> bool:
        """Until `enough(events)`; False when that never happens."""
        with self._new:
            return self._new.wait_for(lambda: enough(self.events), timeout=30)

    def _count(self, event):
        if isinstance(event, Chunk):
            with self._lock:
                self.held += 1
                self.most_held = max(self.most_held, self.held)
            event = Chunk(**vars(event) | {"release": partial(self._release, event)})
        with self._new:
            self.events.append(event)
            self._new.notify_all()
        return event

    def _release(self, event: Chunk) -> None:
        with self._lock:
            self.held -= 1
        event.release()


@pytest.fixture
def decoding(monkeypatch) -> Decoding:
    counting = Decoding()
    monkeypatch.setattr(encoding, "decode_videos", counting)
    return counting


@pytest.fixture
def writer(tmp_path):
    with CacheWriter(tmp_path / "feats.h5", contents(fps=FPS), {}) as writer:
        yield writer


def videos(folder: Path, *names: str) -> list[Video]:
    for name in names:
        (folder / name).write_text(name)
    return [Video(name.replace(" ", "_"), folder / name) for name in names]


def run(writer, names, *devices, **options):
    effort = {name: options.pop(name) for name in ("workers", "batch", "compiled", "time_limit_s") if name in options}
    given = {"fps": FPS, "how": How(), "tell": lambda _: None} | options
    effort = Effort(**({"workers": PROCESSES, "batch": BATCH} | effort))
    return extract_into(writer, videos(writer.path.parent, *names), clips=devices or [Grey()], effort=effort, **given)


def greys(writer, video_id: str) -> list[int]:
    writer.write_index()
    return CacheReader(writer.path).tokens(video_id)[:, 0, 0].astype(int).tolist()


def bytes_of(writer) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in parts_folder(writer.path).glob("*.h5")}


def at_rest() -> bool:
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("costl-")]
    return not threads and not [one for one in multiprocessing.active_children() if one.name == "costl-decode"]


def test_every_frame_of_every_video_comes_to_its_place(writer, decoding):
    rows = run(writer, "abc")
    assert sorted(row.name for row in rows) == ["a", "b", "c"] and all(row.ok for row in rows)
    assert all(greys(writer, name) == list(range(FRAMES)) for name in "abc")
    assert decoding.held == 0 and at_rest()


def test_decoding_goes_on_until_the_slots_are_full_while_the_device_stands_still(writer, decoding):
    went_on = []

    def stand_still(images):
        if not went_on:  # the first batch: the chunks in it are released, all other slots fill meanwhile
            filled = BATCH // IN_A_SLOT + PROCESSES * SLOTS
            went_on.append(decoding.wait_for(lambda events: len(events) >= filled))

    run(writer, "ab", Grey(stand_still))
    assert went_on == [True]


def test_decoding_and_encoding_go_on_while_the_disk_stands_still(writer, decoding, monkeypatch):
    went_on, store = [], CacheWriter.store

    def stand_still(self, video_id, **features):
        if not went_on:
            went_on.append(decoding.wait_for(lambda events: sum(isinstance(one, Decoded) for one in events) == 3))
        return store(self, video_id, **features)

    monkeypatch.setattr(CacheWriter, "store", stand_still)
    run(writer, "abc", fps=2.0)  # 16 frames a video: 4 batches may wait for the disk, 3 more in slots and on the device
    assert went_on == [True]


@pytest.mark.parametrize("slow", ["device", "disk"])
@pytest.mark.promise(8)
def test_what_is_in_flight_is_bounded_whatever_is_slow(writer, decoding, monkeypatch, slow):
    arrived, most = [0], [0]
    add, count = Saver._gather, Decoding._count

    def gathered(self, stretch: Stretch):
        if slow == "disk":
            time.sleep(0.004)
        arrived[0] += len(stretch)
        add(self, stretch)

    def counted(self, event):
        event = count(self, event)
        sent = sum(len(one.times_s) for one in self.events if isinstance(one, Chunk))
        most[0] = max(most[0], sent - arrived[0])
        return event

    monkeypatch.setattr(Saver, "_gather", gathered)
    monkeypatch.setattr(Decoding, "_count", counted)
    run(writer, "abcd", Grey(lambda images: time.sleep(0.01) if slow == "device" else None))
    in_slots = PROCESSES * SLOTS * IN_A_SLOT
    on_device = (BATCH - 1 + IN_A_SLOT) + 2 * BATCH
    before_disk = (UNSAVED + 1) * BATCH
    assert decoding.most_held <= PROCESSES * SLOTS
    assert in_slots <= most[0] <= in_slots + on_device + before_disk < 4 * FRAMES / 5


def test_several_devices_of_uneven_speed_make_the_bytes_of_one(tmp_path, decoding):
    made = []
    for number in (1, 3):
        dice = random.Random(number)
        devices = [Grey(lambda _, dice=dice: time.sleep(dice.random() * 0.02)) for _ in range(number)]
        (tmp_path / str(number)).mkdir()
        with CacheWriter(tmp_path / str(number) / "feats.h5", contents(fps=FPS), {}) as writer:
            run(writer, "abc", *devices)
        made.append(bytes_of(writer))
        assert all(device.batches and set(device.batches) == {BATCH} for device in devices)
    assert made[0] == made[1]


@pytest.mark.promise(3)
def test_a_full_device_halves_the_batch_once_and_for_all(writer, decoding):
    refused, told = [], []

    def full(images):
        if len(images) > 3:
            refused.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    device, meter = Grey(full), Meter()
    run(writer, "ab", device, meter=meter, tell=lambda progress: told.append(progress.word))
    assert refused == [8, 4] and set(device.batches) == {2} and meter.batches == [2]
    assert [word for word in told if word] == [
        "cpu is full: 8 frames at once become 4 from here on.",
        "cpu is full: 4 frames at once become 2 from here on.",
    ]
    assert all(greys(writer, name) == list(range(FRAMES)) for name in "ab")


def test_a_device_too_small_for_one_frame_says_so(writer, decoding):
    def full(_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    with pytest.raises(CostlError, match=r"cpu: not even one frame fits.*--device"):
        run(writer, "ab", Grey(full))
    assert at_rest()


def test_a_device_that_fails_stops_the_run_at_once_and_keeps_what_was_finished(writer, decoding):
    seen = []

    def fail(images):
        seen.append(images)
        if len(seen) > FRAMES // BATCH * 1.5:
            saved.wait(30)
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    saved = threading.Event()
    with pytest.raises(CostlError, match=r"cpu failed \(CUDA error: unspecified launch failure\)\. What was finished"):
        run(writer, "abc", Grey(fail), workers=1, tell=lambda progress: progress.video and saved.set())
    assert at_rest() and greys(writer, "a") == list(range(FRAMES))


def test_a_disk_that_fails_stops_the_run_at_once(writer, decoding, monkeypatch):
    def full(*_, **__):
        raise CacheError("feats.h5.parts: cannot be written (No space left on device).")

    monkeypatch.setattr(CacheWriter, "store", full)
    with pytest.raises(CacheError, match="No space left"):
        run(writer, "abcdef")
    assert at_rest() and sum(isinstance(one, Decoded) for one in decoding.events) < 6


def test_an_interruption_ends_every_thread_and_process_and_keeps_what_was_told(writer, decoding):
    told = []

    def interrupt(progress: Progress):
        if progress.video:
            told.append(progress.video)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(writer, "abcdefgh", tell=interrupt)
    assert at_rest() and greys(writer, told[0]) == list(range(FRAMES))
    writer.write_index()
    assert len(CacheReader(writer.path).video_ids) < 8


def test_a_video_that_fails_half_way_leaves_nothing_behind_and_its_neighbours_whole(writer, decoding):
    rows = run(writer, ["a", "refuse later", "b"], Grey(), Grey())
    assert {row.name: row.status for row in rows} == {"a": "ok", "refuse later": "short", "b": "ok"}
    assert all(greys(writer, name) == list(range(FRAMES)) for name in "ab")
    assert {part.name for part in parts_folder(writer.path).glob("*.h5")} == {"a.h5", "b.h5"}


def test_one_long_video_is_told_frame_by_frame(writer, decoding):
    told: list[Progress] = []
    run(writer, "a", tell=told.append)
    frames = [progress for progress in told if progress.stage == "frames"]
    assert [progress.done for progress in frames] == list(range(IN_A_SLOT, FRAMES + 1, IN_A_SLOT))
    assert {progress.total for progress in frames} == {FRAMES} and all(progress.flow for progress in frames)


def test_a_compiler_that_fails_costs_a_word_and_nothing_else(writer, decoding):
    class Uncompilable(Grey):
        def compile(self, batch):
            raise NotImplementedError(f"no compiler for {batch}\nand a traceback")

    told = []
    run(writer, "a", Uncompilable(), compiled=True, tell=lambda progress: told.append(progress.word))
    assert "cpu: cannot compile here (no compiler for 8); going on without --compile." in told
    assert greys(writer, "a") == list(range(FRAMES))


def test_a_meter_knows_what_was_done(writer, decoding):
    meter = Meter()
    run(writer, ["a", "refuse open", "b"], meter=meter)
    assert meter.frames == 2 * FRAMES and meter.videos == {"ok": 2, "short": 1}
    assert (meter.decoders, meter.batches, meter.processes) == ({"pretend": 2}, [BATCH], PROCESSES)
    assert set(meter.waited_s()) == {"decode", "disk", "CLIP"} and meter.waited_s()["decode"] > 0


@pytest.mark.parametrize(
    ("free", "frame", "fits"), [(80e9, 30e6, 256), (8e9, 30e6, 128), (8e9, 500e6, 8), (1e9, 2e9, 1), (0, 1, 1)]
)
def test_the_batch_is_what_fits_into_half_of_what_is_free(free, frame, fits):
    assert batch_that_fits(free, frame, most=256) == fits
