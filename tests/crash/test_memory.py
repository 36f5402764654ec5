"""Peak memory of real processes depends neither on the number of videos nor on their length.

The long tests write and read large files:

    COSTL_FIGURES=1 python -m pytest tests/crash/test_memory.py -m long -n 0
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from small_cache import unit_vectors

from costl.pipeline.bench.measure import can_measure_memory, peak_memory
from costl.pipeline.bench.memory import extraction_memory
from costl.pipeline.bench.videos import repeat_video
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter

pytestmark = pytest.mark.skipif(not can_measure_memory(), reason="system does not report the memory of other processes")
ROOT = Path(__file__).parents[2]
FEW, MANY = 24, 240  # videos; the large cache is much larger than a process
MINUTES, LONGER = 6, 20  # of the short video, and how many times as long the other is; both fill what decord reads ahead
MOST_GROWTH = 1.2


def write_cache(path: Path, like: CacheReader, videos: int, *, clips: int) -> Path:
    """A cache in the format of `like` with `videos` videos of `clips` clips, and one test query about each."""
    rng = np.random.default_rng(0)
    query, words = next(iter(like.word_table().items()))
    rows = [
        {
            "qid": number,
            "query": query,
            "vid": f"v{number}",
            "duration": 2.0 * clips,
            "relevant_windows": [[2, 8]],
            "relevant_clip_ids": [1, 2, 3],
            "saliency_scores": [[4, 4, 4]] * 3,
        }
        for number in range(videos)
    ]
    texts = {"test": "".join(json.dumps(row) + "\n" for row in rows)}
    contents = replace(like.contents, annotations=texts)
    shape = like.tokens(like.video_ids[0]).shape[1:]
    with CacheWriter(path, contents, {query: words}) as writer:
        for number in range(videos):
            writer.store(
                f"v{number}",
                tokens=rng.normal(size=(clips, *shape)).astype(np.float16),
                joint=unit_vectors(rng, clips, like.joint.width),
                times_s=np.arange(clips) * 2.0 + 1,
                duration_s=2.0 * clips,
                content_hash=str(number),
            )
        writer.write_index()
    return path


def peak(*arguments: object, folder: Path) -> float:
    environment = ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1"]
    return peak_memory([*environment, sys.executable, "-m", "costl", *map(str, arguments)], cwd=folder)


@pytest.mark.promise(8)
@pytest.mark.promise(10)
def test_the_memory_of_verify_does_not_grow_with_the_number_of_videos(world, tmp_path, report_figure):
    like = CacheReader(world.cache)
    shape = like.tokens(like.video_ids[0]).shape[1:]
    clips = 400_000 // (2 * int(np.prod(shape)))  # 400 kB a video
    peaks = {}
    for count in (FEW, MANY):
        cache = write_cache(tmp_path / str(count) / "feats.h5", like, count, clips=clips)
        peaks[count] = peak("cache", "verify", cache, folder=tmp_path)
    few, many = peaks.values()
    size = sum(part.stat().st_size for part in (tmp_path / str(MANY)).rglob("*.h5"))
    report_figure(
        f"verify: {few / 1e6:.0f} MB at {FEW} videos, {many / 1e6:.0f} MB at {MANY} ({size / 1e6:.0f} MB of parts)"
    )
    assert size > 0.5 * few, "the parts must be large enough to show in the memory"
    assert many < MOST_GROWTH * few


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(8)
def test_the_memory_of_evaluate_does_not_grow_with_the_number_of_videos(world, tmp_path, report_figure):
    from costl.train import train

    train(
        world.cache,
        overrides=["train.epochs=1", "predict.window_clips=32"],
        out=tmp_path / "run",
        device="cpu",
    )
    like = CacheReader(world.cache)
    shape = like.tokens(like.video_ids[0]).shape[1:]
    clips = min(400, 2_000_000 // (2 * int(np.prod(shape))))  # 2 MB a video
    peaks = {}
    size = 0
    for count in (FEW, MANY):
        cache = write_cache(tmp_path / str(count) / "feats.h5", like, count, clips=clips)
        size = sum(part.stat().st_size for part in cache.parent.rglob("*.h5"))
        peaks[count] = peak("evaluate", "--run", "run", "--cache", cache, "--out", f"out{count}", folder=tmp_path)
    few, many = peaks.values()
    report_figure(
        f"evaluate: {few / 1e6:.0f} MB at {FEW} videos, {many / 1e6:.0f} MB at {MANY} ({size / 1e6:.0f} MB of parts)"
    )
    assert size > 0.5 * few, "the parts must be large enough to show in the memory"
    assert many < MOST_GROWTH * few


# The length of a video


def write_video(path: Path, seconds: int, *, rate: int = 5) -> Path:
    """Writes a 1080p video of four moving images with a key frame every ten seconds."""
    rng = np.random.default_rng(0)
    images = [np.kron(rng.integers(0, 255, (27, 48, 3), np.uint8), np.ones((40, 40, 1), np.uint8)) for _ in range(4)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "g": str(10 * rate)})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(seconds * rate):
            image = np.roll(images[number // (10 * rate) % 4], 8 * number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.promise(8)
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_two_hours_of_1080p_take_no_more_memory_than_six_minutes(tmp_path, report_figure, decoder):
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    short = write_video(tmp_path / "short" / "video.mp4", MINUTES * 60)
    repeat_video(short, tmp_path / "long" / "video.mp4", LONGER)
    peaks = {}
    clips = {}
    for name in ("short", "long"):
        out = tmp_path / "out" / name
        peaks[name] = extraction_memory(tmp_path / name, out, fps=0.5, decoder=decoder)
        clips[name] = CacheReader(out / "feats.h5").rows[0].clips
    ratio = peaks["long"] / peaks["short"]
    report_figure(
        f"{decoder}: {peaks['short'] / 1e6:.0f} MB for {clips['short']} clips of six minutes, "
        f"{peaks['long'] / 1e6:.0f} MB for {clips['long']} of two hours: {ratio:.2f} times"
    )
    assert clips == {"short": MINUTES * 30, "long": MINUTES * 30 * LONGER}
    assert ratio < MOST_GROWTH
