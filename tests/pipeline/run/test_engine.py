"""Decoding, CLIP and the disk work at the same time; everything in flight is bounded; no order changes a token."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_video import FakeVideo
from small_cache import JOINT_CHANNELS, small_contents

from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Decoded, decode_videos
from costl.pipeline.encode.types import FrameFeatures
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.progress import Progress
from costl.pipeline.run import engine
from costl.pipeline.run.encoder_thread import EncoderThread, Frame
from costl.pipeline.run.engine import extract_into
from costl.pipeline.run.saver_thread import UNSAVED, SaverThread
from costl.pipeline.run.throughput import Meter
from costl.pipeline.videos import Video

FPS, FRAMES = 25.0, 200  # a pretended video has eight seconds; all pixels of frame k are k
PROCESSES, SLOTS, IN_A_SLOT = 2, 2, 4
BATCH = 8


class GreyEncoder:
    """An encoder that writes the grey of each frame into its tokens; `before` is called with the images of each batch."""

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
        joint = np.full((len(tokens), JOINT_CHANNELS), 0.5, np.float16)
        return lambda: FrameFeatures(np.broadcast_to(tokens[:, None, None], (len(tokens), 7, 8)), joint)


class CountingDecoder:
    """Replaces `decode_videos`: decodes pretended videos and counts the chunks that are not yet released."""

    def __init__(self):
        self.events: list = []
        self.held = self.most_held = 0
        self._lock, self._new = threading.Lock(), threading.Condition()

    @contextmanager
    def __call__(self, videos, settings, **options):
        settings = replace(settings, open_video=FakeVideo, slot_bytes=IN_A_SLOT * 48 * 64 * 3, slots=SLOTS)
        with decode_videos(videos, settings, **options) as events:
            yield map(self._count, events)

    def wait_for(self, enough) -> bool:
        """Waits until `enough(events)`; False if that does not happen in time."""
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
def decoder(monkeypatch) -> CountingDecoder:
    decoder = CountingDecoder()
    monkeypatch.setattr(engine, "decode_videos", decoder)
    return decoder


@pytest.fixture
def writer(tmp_path):
    with CacheWriter(tmp_path / "feats.h5", small_contents(fps=FPS), {}) as writer:
        yield writer


def videos(folder: Path, *names: str) -> list[Video]:
    for name in names:
        (folder / name).write_text(name)
    return [Video(name.replace(" ", "_"), folder / name) for name in names]


def run(writer, names, *encoders, **options):
    run_fields = {name: options.pop(name) for name in ("workers", "batch", "time_limit_s") if name in options}
    run_options = RunOptions(**({"workers": PROCESSES, "batch": BATCH} | run_fields))
    arguments = {"fps": FPS, "frame_options": FrameOptions(), "report_progress": lambda _: None} | options
    return extract_into(
        writer,
        videos(writer.path.parent, *names),
        encoders=encoders or [GreyEncoder()],
        run_options=run_options,
        **arguments,
    )


def greys(writer, video_id: str) -> list[int]:
    writer.write_index()
    return CacheReader(writer.path).tokens(video_id)[:, 0, 0].astype(int).tolist()


def bytes_of(writer) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in parts_folder(writer.path).glob("*.h5")}


def nothing_runs() -> bool:
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("costl-")]
    processes = [process for process in multiprocessing.active_children() if process.name == "costl-decode"]
    return not threads and not processes


def test_each_token_is_stored_at_the_index_of_its_frame(writer, decoder):
    rows = run(writer, "abc")
    assert sorted(row.name for row in rows) == ["a", "b", "c"] and all(row.ok for row in rows)
    assert all(greys(writer, name) == list(range(FRAMES)) for name in "abc")
    assert decoder.held == 0 and nothing_runs()


def test_a_stalled_device_lets_decoding_fill_all_slots(writer, decoder):
    went_on = []

    def stand_still(images):
        if not went_on:  # the first batch: the chunks in it are released, all other slots fill meanwhile
            filled = BATCH // IN_A_SLOT + PROCESSES * SLOTS
            went_on.append(decoder.wait_for(lambda events: len(events) >= filled))

    run(writer, "ab", GreyEncoder(stand_still))
    assert went_on == [True]


def test_a_stalled_disk_lets_decoding_and_encoding_go_on(writer, decoder, monkeypatch):
    went_on = []
    store = CacheWriter.store

    def stand_still(self, video_id, **features):
        if not went_on:
            went_on.append(decoder.wait_for(lambda events: sum(isinstance(one, Decoded) for one in events) == 3))
        return store(self, video_id, **features)

    monkeypatch.setattr(CacheWriter, "store", stand_still)
    run(writer, "abc", fps=2.0)  # 16 frames a video: 4 batches may wait for the disk, 3 more in slots and on the device
    assert went_on == [True]


@pytest.mark.parametrize("slow", ["device", "disk"])
@pytest.mark.promise(8)
def test_frames_in_flight_are_bounded_with_a_slow_device_or_disk(writer, decoder, monkeypatch, slow):
    arrived, most = [0], [0]
    add = SaverThread._add_to_buffer
    count = CountingDecoder._count

    def add_slowly(self, frame: Frame):
        if slow == "disk":
            time.sleep(0.001)
        arrived[0] += 1
        add(self, frame)

    def counted(self, event):
        event = count(self, event)
        sent = sum(len(one.times_s) for one in self.events if isinstance(one, Chunk))
        most[0] = max(most[0], sent - arrived[0])
        return event

    monkeypatch.setattr(SaverThread, "_add_to_buffer", add_slowly)
    monkeypatch.setattr(CountingDecoder, "_count", counted)
    run(writer, "abcd", GreyEncoder(lambda images: time.sleep(0.01) if slow == "device" else None))
    in_slots = PROCESSES * SLOTS * IN_A_SLOT
    on_device = (BATCH - 1 + IN_A_SLOT) + 2 * BATCH
    before_disk = (UNSAVED + 1) * BATCH
    assert decoder.most_held <= PROCESSES * SLOTS
    assert in_slots <= most[0] <= in_slots + on_device + before_disk < 4 * FRAMES / 5


def test_devices_of_uneven_speed_give_the_same_bytes_as_one_device(tmp_path, decoder):
    by_run = []
    for number in (1, 3):
        dice = random.Random(number)
        encoders = [GreyEncoder(lambda _, dice=dice: time.sleep(dice.random() * 0.02)) for _ in range(number)]
        (tmp_path / str(number)).mkdir()
        with CacheWriter(tmp_path / str(number) / "feats.h5", small_contents(fps=FPS), {}) as writer:
            run(writer, "abc", *encoders)
        by_run.append(bytes_of(writer))
        assert all(encoder.batches and set(encoder.batches) == {BATCH} for encoder in encoders)
    assert by_run[0] == by_run[1]


@pytest.mark.promise(3)
def test_a_full_device_halves_the_batch_for_the_rest_of_the_run(writer, decoder):
    refused_sizes, messages = [], []

    def full(images):
        if len(images) > 3:
            refused_sizes.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    encoder = GreyEncoder(full)
    meter = Meter()
    run(writer, "ab", encoder, meter=meter, report_progress=lambda progress: messages.append(progress.message))
    assert refused_sizes == [8, 4] and set(encoder.batches) == {2} and meter.batches == [2]
    assert [message for message in messages if message] == [
        "cpu is full: 8 frames at once become 4 from here on.",
        "cpu is full: 4 frames at once become 2 from here on.",
    ]
    assert all(greys(writer, name) == list(range(FRAMES)) for name in "ab")


def test_a_batch_that_did_not_fit_is_freed_before_it_is_halved(writer, decoder, monkeypatch):
    activations, freed = [], []

    def full(images):
        if len(images) > 3:
            allocated = np.zeros(9)
            activations.append(weakref.ref(allocated))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def halve(thread):
        freed.append(activations[-1]() is None)
        halve_batch(thread)

    halve_batch = EncoderThread._halve_batch
    monkeypatch.setattr(EncoderThread, "_halve_batch", halve)
    run(writer, "a", GreyEncoder(full))
    assert freed == [True, True]


def test_a_device_too_small_for_one_frame_is_an_error(writer, decoder):
    def full(_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    with pytest.raises(CostlError, match=r"cpu: not even one frame fits.*--device"):
        run(writer, "ab", GreyEncoder(full))
    assert nothing_runs()


def test_a_failed_device_stops_the_run_and_keeps_finished_videos(writer, decoder):
    batches = []

    def fail(images):
        batches.append(images)
        if len(batches) > FRAMES // BATCH * 1.5:
            saved.wait(30)
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    saved = threading.Event()
    with pytest.raises(CostlError, match=r"cpu failed \(CUDA error: unspecified launch failure\)\. Finished videos are kept"):
        run(writer, "abc", GreyEncoder(fail), workers=1, report_progress=lambda progress: progress.video and saved.set())
    assert nothing_runs() and greys(writer, "a") == list(range(FRAMES))


def test_a_failed_disk_stops_the_run(writer, decoder, monkeypatch):
    def full(*_, **__):
        raise CacheError("feats.h5.parts: cannot be written (No space left on device).")

    monkeypatch.setattr(CacheWriter, "store", full)
    with pytest.raises(CacheError, match="No space left"):
        run(writer, "abcdef")
    assert nothing_runs() and sum(isinstance(one, Decoded) for one in decoder.events) < 6


def test_an_interruption_ends_all_threads_and_keeps_reported_videos(writer, decoder):
    reported = []

    def interrupt(progress: Progress):
        if progress.video:
            reported.append(progress.video)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(writer, "abcdefgh", report_progress=interrupt)
    assert nothing_runs() and greys(writer, reported[0]) == list(range(FRAMES))
    writer.write_index()
    assert len(CacheReader(writer.path).video_ids) < 8


def test_a_video_that_fails_half_way_does_not_affect_the_others(writer, decoder):
    rows = run(writer, ["a", "refuse later", "b"], GreyEncoder(), GreyEncoder())
    assert {row.name: row.status for row in rows} == {"a": "ok", "refuse later": "short", "b": "ok"}
    assert all(greys(writer, name) == list(range(FRAMES)) for name in "ab")
    assert {part.name for part in parts_folder(writer.path).glob("*.h5")} == {"a.h5", "b.h5"}


def test_the_progress_of_a_single_video_counts_encoded_frames(writer, decoder, monkeypatch):
    monkeypatch.setattr(engine, "_REPORT_EVERY_S", 0.001)
    frames: list[Progress] = []
    enough = threading.Event()

    def report(progress: Progress) -> None:
        if progress.stage == "frames":
            frames.append(progress)
        if len(frames) == 20:  # many more than there are chunks before the first frame is encoded
            enough.set()

    run(writer, "a", GreyEncoder(lambda images: enough.wait(60)), report_progress=report)
    counts = [progress.done for progress in frames]
    assert counts == sorted(counts) and counts[:20] == [0] * 20 and counts[-1] == FRAMES
    assert {progress.total for progress in frames} == {FRAMES} and all(progress.speed for progress in frames)


def test_the_meter_counts_videos_frames_and_waits(writer, decoder):
    meter = Meter()
    run(writer, ["a", "refuse open", "b"], meter=meter)
    assert meter.frames == 2 * FRAMES and meter.videos == {"ok": 2, "short": 1}
    assert meter.batches == [BATCH]
    assert set(meter.waited_s) == {"decode", "disk", "CLIP"} and meter.waited_s["decode"] > 0
