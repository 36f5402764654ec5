"""The extraction benchmark: its numbers are consistent, and its videos and stand-ins are as they are described."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.commands import main
from costl.pipeline.bench import memory
from costl.pipeline.bench.extract import Comparison, bench_extract, compare, full_batches, token_error
from costl.pipeline.bench.extract_entrants import encode_all, extract_all
from costl.pipeline.bench.imitated_accelerator import ImitatedAccelerator
from costl.pipeline.bench.measure import Cost, can_measure_memory, cost_of
from costl.pipeline.bench.videos import FRAME_RATE, VideoSpec, link_copies, render_video, repeat_video
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import FrameOptions
from costl.pipeline.videos import Video, find_videos

linux = pytest.mark.skipif(not can_measure_memory(), reason="this system does not report the memory of other processes")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_encoder("tiny", str(write_clip_weights(tmp_path_factory.mktemp("clip"))), device="cpu")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "ab":
        make_video(tmp_path / "videos" / f"{name}.mp4", frame_times(100))
    return tmp_path / "videos"


def comparison(**changes) -> Comparison:
    costs = {"decode": Cost(4.0, 6.0), "forward": Cost(2.0, 4.0), "extract": Cost(6.25, 11.0), "plain": Cost(25.0, 40.0)}
    common = {"frames": 100, "cores": 2, "error": 0.001, "rate": 1000.0, "imitated": Cost(5.0, 1.0)}
    return Comparison(**{**common, **costs, **changes})


def test_shared_cores_limit_the_rate_by_the_cpu_seconds_of_both_halves():
    assert comparison().limit_s == 5.0 and comparison().share == 0.8  # (6 + 4) / 2 cores
    assert comparison(decode=Cost(5.5, 6.0)).limit_s == 5.5  # one long video keeps one core busy for longer than that


def test_with_an_accelerator_the_limit_is_the_slower_half():
    on_gpu = comparison(imitated=None)
    assert on_gpu.limit_s == 4.0 and on_gpu.share == 0.64 and on_gpu.imitated_share is None
    assert comparison(imitated=None, forward=Cost(5.0, 0.1)).share == 0.8


def test_the_imitated_accelerator_is_limited_by_decoding_or_its_rate():
    assert comparison().imitated_share == 0.8  # 4 s of decoding
    assert comparison(imitated=Cost(12.5, 1.0), rate=10.0).imitated_share == 0.8  # 10 s at 10 frames a second


def test_a_row_has_rates_and_shares():
    assert comparison().row("c") == ["c", "100", "25.0", "50.0", "16.0", "20.0", "0.80", "20.0", "0.80", "4.0", "4.0", "0.0010"]
    assert comparison(imitated=None).row("c")[7:9] == ["-", "-"]
    assert comparison(plain=None, error=None).row("c")[9:] == ["-", "-", "-"]


def test_the_command_has_a_line_for_every_set_of_videos():
    done = CliRunner().invoke(main, ["bench", "extract", "--quick", "--repeats", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| 144p, key frame every 150", "| the sample world"))]
    assert len(rows) == 2
    for row in rows:
        frames, *rates, error = [float(cell) for cell in row.split("|")[2:-1]]
        assert frames > 0 and min(rates[:3]) > 0 and error < 0.01


def test_the_tokens_of_the_plain_loop_are_those_of_extraction(clip, folder, tmp_path):
    (tmp_path / "work").mkdir()
    videos = find_videos(folder)
    result = compare(videos, clip, tmp_path / "work", fps=2.0, frame_options=FrameOptions(), repeats=1)
    assert result.frames == 16 and result.error < 0.01
    assert min(cost.cpu_s for cost in (result.decode, result.forward, result.extract, result.plain)) > 0
    cache = CacheReader(tmp_path / "work" / "0" / "feats.h5")
    tokens = np.load(tmp_path / "work" / "b.npy")
    np.save(tmp_path / "work" / "b.npy", tokens[::-1])
    assert token_error(cache, tmp_path / "work") > 0.05


def test_a_video_that_cannot_be_read_is_an_error(clip, folder, tmp_path):
    (folder / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    with pytest.raises(CostlError, match=r"c\.mp4"):
        compare(find_videos(folder), clip, tmp_path, fps=2.0, frame_options=FrameOptions(), repeats=1)


def test_the_imitated_accelerator_runs_in_the_real_extraction(clip, folder, tmp_path):
    accelerator = ImitatedAccelerator(clip, rate=1e6)
    extract_all(find_videos(folder), accelerator, tmp_path / "feats.h5", fps=2.0, frame_options=FrameOptions())
    cache = CacheReader(tmp_path / "feats.h5")
    rows, columns = clip.patch_grid
    assert cache.video_ids == ["a", "b"] and cache.tokens("a").shape == (8, 1 + rows * columns, clip.width)


def test_the_imitated_accelerator_takes_time_and_no_cpu(clip):
    images = ImitatedAccelerator(clip, rate=20.0).prepare(np.zeros((6, 48, 64, 3), np.uint8))
    cost = cost_of(lambda: ImitatedAccelerator(clip, rate=20.0).encode_images(images))
    assert len(images) == 6 and cost.wall_s >= 0.3 and cost.cpu_s < 0.2


def test_a_batch_is_fetched_after_the_next_one_was_started():
    calls = []

    class Encoder:
        def start(self, batch):
            calls.append(f"start {batch}")
            return lambda: calls.append(f"fetch {batch}")

    encode_all([0, 1, 2], Encoder())
    assert calls == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]


def test_batches_are_full_and_start_again_if_frames_run_out():
    images = [torch.arange(3.0)[:, None], torch.arange(3.0, 7.0)[:, None]]
    assert [batch[:, 0].tolist() for batch in full_batches(images, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert [batch[:, 0].tolist() for batch in full_batches(images, 10)] == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]


def test_wrong_options_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="repeats is 0"):
        bench_extract(repeats=0)
    with pytest.raises(UsageError, match="no open_clip model is called 'ViT-B-33'"):
        bench_extract(models=["ViT-B-33"], device="cpu")
    done = CliRunner().invoke(main, ["bench", "extract", "--quick", "--device", "cpu", "--videos", str(tmp_path)])
    assert done.exit_code == 2 and "no videos" in done.stderr


def test_a_rendered_video_moves_and_has_key_frames_at_the_interval(tmp_path):
    render_video(VideoSpec(96, 20, 2, 100), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.is_keyframe]
        container.seek(0)
        first, *rest = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
    assert sorted(map(float, keys)) == pytest.approx([0, 20 / FRAME_RATE, 40 / FRAME_RATE])
    assert len(rest) == 2 * FRAME_RATE - 1 and first.shape == (96, 170)
    assert np.abs(rest[29] - first).mean() > 3 and first.std() > 10


def test_a_video_repeated_five_times_is_five_times_as_long(clip, tmp_path):
    source = make_video(tmp_path / "a.mp4", frame_times(100))
    repeat_video(source, tmp_path / "long.mp4", 5)
    videos = [Video("long", tmp_path / "long.mp4")]
    extract_all(videos, clip, tmp_path / "feats.h5", fps=1.0, frame_options=FrameOptions())
    assert CacheReader(tmp_path / "feats.h5").row("long").duration_s == pytest.approx(20.0, abs=0.3)


def test_link_copies_makes_at_least_the_count_of_videos(folder, tmp_path):
    several = link_copies(find_videos(folder), 5, tmp_path / "many")
    assert [video.id for video in several] == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    assert several[0].path.read_bytes() == (folder / "a.mp4").read_bytes()


@linux
def test_memory_that_grows_with_the_videos_is_measured_as_growing(monkeypatch):
    monkeypatch.setattr(memory, "MEMORY_VIDEO", VideoSpec(96, 20, 2, 100))
    grows = "import sys, numpy, time, pathlib\n"
    grows += "size = sum(p.stat().st_size for p in pathlib.Path(sys.argv[1]).iterdir())\n"
    grows += "values = numpy.ones(size * 100); time.sleep(0.3)"
    monkeypatch.setattr(memory, "_EXTRACT_SCRIPT", grows)
    *_, longer, more = memory.bench_memory(decoder="decord", report_progress=lambda _: None)
    assert "20 times as long" in longer and float(longer.split("|")[-2]) > 2
    assert "4 videos, then 16" in more and float(more.split("|")[-2]) > 1.5


def test_the_measured_extraction_runs_and_reports_failures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "peak_memory", lambda command, **_: command)
    (folder / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    _, _, script, *arguments = memory.extraction_memory(folder, tmp_path / "out", fps=2.0, decoder="decord")
    monkeypatch.setattr("sys.argv", ["-c", *arguments])
    with pytest.raises(SystemExit, match=r"c\.mp4: truncated"):
        exec(script, {})
    assert CacheReader(tmp_path / "out" / "feats.h5").video_ids == ["a", "b"]
