"""The extraction benchmark: its numbers are consistent, and the imitated accelerator is named as such."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.commands import main
from costl.pipeline.bench import extract as bench
from costl.pipeline.bench import memory as bench_memory
from costl.pipeline.bench.extract_entrants import extract_all, full_batches
from costl.pipeline.bench.extract_tables import Comparison, table
from costl.pipeline.bench.imitated_accelerator import ImitatedAccelerator, as_encoder
from costl.pipeline.bench.measure import Cost, can_measure_memory
from costl.pipeline.bench.memory import Memory
from costl.pipeline.bench.videos import FRAME_RATE, VideoSet, VideoSpec, render_video, repeat_video
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import FrameOptions
from costl.pipeline.run.engine import cpu_cores
from costl.pipeline.videos import Video, find_videos


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
    common = {
        "clips": "c",
        "model": "M",
        "device": "d",
        "batch": 16,
        "fps": 0.5,
        "decoder": "pyav",
        "videos": 2,
        "frames": 100,
        "cores": 2,
    }
    costs = {"decode": Cost(4.0, 6.0), "forward": Cost(2.0, 4.0), "extract": Cost(6.25, 11.0)}
    return Comparison(**{**common, **costs, "shared": True, **changes})


def test_shared_cores_limit_the_rate_by_the_cpu_seconds_of_both_halves():
    assert comparison().limit_s == 5.0 and comparison().ratio == 0.8  # (6 + 4) / 2 cores
    assert comparison(decode=Cost(5.5, 6.0)).limit_s == 5.5  # one long video keeps one core busy for longer than that


def test_with_an_accelerator_the_limit_is_the_slower_half():
    on_gpu = comparison(shared=False)
    assert on_gpu.limit_s == 4.0 and on_gpu.ratio == 0.64 and on_gpu.of_forward == 0.32
    assert comparison(shared=False, forward=Cost(5.0, 0.1)).ratio == 0.8


def test_the_imitated_accelerator_is_limited_by_decoding_or_its_rate():
    assert comparison().imitated_ratio is None
    assert comparison(imitated=Cost(5.0, 1.0), rate=1000.0).imitated_ratio == 0.8  # 4 s of decoding
    assert comparison(imitated=Cost(12.5, 1.0), rate=10.0).imitated_ratio == 0.8  # 10 s at 10 frames a second


def test_times_faster_compares_frames_a_second():
    assert comparison().times_faster is None
    assert comparison(plain=Cost(25.0, 40.0), plain_frames=100).times_faster == 4.0
    assert comparison(plain=Cost(25.0, 40.0), plain_frames=50).times_faster == 8.0


def test_the_table_names_the_imitated_accelerator_and_groups_by_model():
    rows = [
        comparison(imitated=Cost(5.0, 1.0), rate=50.0),
        comparison(model="N", shared=False, plain=Cost(9.0, 9.0), plain_frames=90),
    ]
    text = "\n".join(table(rows, 2))
    assert "An imitated accelerator (a stand-in for CLIP that sleeps; no network runs)" in text
    assert text.index("M on d") < text.index("N on d") < text.index("imitated") < text.index("straightforward way")
    assert "imitated" not in "\n".join(table(rows[1:], 2))
    assert "straightforward" not in "\n".join(table(rows[:1], 2))


def test_the_command_measures_everything_with_consistent_numbers():
    done = CliRunner().invoke(main, ["bench", "extract", "--quick", "--repeats", "1", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [row["clips"] for row in report["races"]] == ["144p, key frame every 150", "the sample world"]
    for row in report["races"]:
        assert row["model"] == "costl-tiny" and row["shared"] and row["cores"] == cpu_cores()
        halves = [row["decode"]["wall_s"], row["forward"]["wall_s"]]
        shared = (row["decode"]["cpu_s"] + row["forward"]["cpu_s"]) / row["cores"]
        assert row["limit_s"] == pytest.approx(max(*halves, shared))
        assert row["ratio"] == pytest.approx(row["limit_s"] / row["extract"]["wall_s"])
        assert row["imitated_ratio"] == pytest.approx(
            max(halves[0], row["frames"] / row["rate"]) / row["imitated"]["wall_s"]
        )
        assert row["times_faster"] == pytest.approx(row["plain"]["wall_s"] / row["extract"]["wall_s"])
        assert row["plain_frames"] == row["frames"] > 0
        assert min(row["decode"]["cpu_s"], row["forward"]["cpu_s"], row["extract"]["cpu_s"]) > 0
    assert report["memory"] is None and any("memory was not measured" in note for note in report["notes"])


def test_unreadable_videos_of_a_folder_are_left_out_and_noted(folder, tmp_path, monkeypatch):
    weights = str(write_clip_weights(tmp_path / "clip"))
    (folder / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    monkeypatch.setattr(bench, "can_measure_memory", lambda: False)
    report = bench.bench_extract(videos=folder, models=["tiny"], weights=weights, repeats=1, fps=2.0, device="cpu")
    assert [(row.videos, row.frames, row.plain_frames, row.model) for row in report.comparisons] == [
        (2, 16, 16, "tiny")
    ]
    assert any(note.startswith("Left out: c.mp4") for note in report.notes)
    assert "this system does not report" in report.notes[-1]


def test_tokens_that_differ_from_the_plain_loop_are_refused(clip, folder, tmp_path):
    videos = find_videos(folder)
    extract_all(videos, clip, tmp_path / "feats.h5", fps=2.0, frame_options=FrameOptions(), batch=4)
    ours = CacheReader(tmp_path / "feats.h5")
    runner = bench._Runner(
        fps=2.0,
        frame_options=FrameOptions(),
        batch=4,
        rate=None,
        repeats=1,
        quick=True,
        own_videos=True,
        report_progress=lambda _: None,
    )
    workload = runner._prepare(VideoSet("c", tuple(videos)), clip, 4)
    assert workload.frames == 16 and {len(images) for images in workload.batches} == {4}
    bench.plain_extract(workload.plain, clip, tmp_path)
    runner._check_tokens(workload, clip, ours, tmp_path)
    wrong = np.load(tmp_path / "b.npy")
    np.save(tmp_path / "b.npy", wrong[::-1])
    with pytest.raises(CostlError, match=r"b\.mp4: tokens differ by .* cannot be compared"):
        runner._check_tokens(workload, clip, ours, tmp_path)
    runner.own_videos = False
    runner._check_tokens(workload, clip, ours, tmp_path)
    assert runner.notes == [note for note in runner.notes if note.startswith("b.mp4: tokens differ")] != []


def test_the_imitated_accelerator_runs_in_the_real_extraction(clip, folder, tmp_path):
    accelerator = ImitatedAccelerator(clip, rate=1e6)
    extract_all(
        find_videos(folder),
        as_encoder(accelerator),
        tmp_path / "feats.h5",
        fps=2.0,
        frame_options=FrameOptions(),
        batch=4,
    )
    cache = CacheReader(tmp_path / "feats.h5")
    assert cache.video_ids == ["a", "b"] and "imitated" in cache.fingerprint["model"]
    rows, columns = clip.patch_grid
    assert cache.tokens("a").shape == (8, 1 + rows * columns, clip.width)


def test_the_imitated_accelerator_takes_time_and_no_cpu(clip):
    images = ImitatedAccelerator(clip, rate=20.0).prepare(np.zeros((6, 48, 64, 3), np.uint8))
    tokens, cost = bench.cost_of(lambda: ImitatedAccelerator(clip, rate=20.0).encode_images(images))
    assert len(images) == len(tokens) == 6 and tokens.dtype == np.float16
    assert cost.wall_s >= 0.3 and cost.cpu_s < 0.2


def test_batches_are_full_and_start_again_if_frames_run_out():
    images = [torch.arange(3.0)[:, None], torch.arange(3.0, 7.0)[:, None]]
    assert [batch[:, 0].tolist() for batch in full_batches(images, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert [batch[:, 0].tolist() for batch in full_batches(images, 10)] == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"batch": -1}, {"rate": 0.0}])
def test_wrong_numbers_are_refused_before_anything_is_rendered(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        bench.bench_extract(**wrong)


def test_an_unknown_model_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no open_clip model is called 'ViT-B-33'"):
        bench.bench_extract(models=["ViT-B-33"], device="cpu")
    done = CliRunner().invoke(main, ["bench", "extract", "--videos", str(tmp_path)])
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
    extract_all(
        [Video("long", tmp_path / "long.mp4")],
        clip,
        tmp_path / "feats.h5",
        fps=1.0,
        frame_options=FrameOptions(),
        batch=4,
    )
    assert CacheReader(tmp_path / "feats.h5").row("long").duration_s == pytest.approx(20.0, abs=0.3)


def test_link_copies_makes_at_least_the_count_of_videos(folder, tmp_path):
    several = VideoSet("c", tuple(find_videos(folder))).link_copies(5, tmp_path / "many")
    assert [video.id for video in several.videos] == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    assert several.videos[0].path.read_bytes() == (folder / "a.mp4").read_bytes()


@pytest.mark.skipif(not can_measure_memory(), reason="this system does not report the memory of other processes")
def test_memory_that_grows_with_the_videos_is_measured_as_growing(folder, monkeypatch):
    grows = "import sys, numpy, time, pathlib\n"
    grows += "size = sum(p.stat().st_size for p in pathlib.Path(sys.argv[1]).iterdir())\n"
    grows += "values = numpy.ones(size * 100); time.sleep(0.3)"
    monkeypatch.setattr(bench_memory, "_EXTRACT_SCRIPT", grows)
    report = bench_memory.bench_memory(
        Video("a", folder / "a.mp4"), fps=1.0, decoder="decord", report_progress=lambda _: None
    )
    assert report.data()["longer"] > 2 and report.data()["more"] > 1.5
    even = Memory(short=1e8, long=1.1e8, few=2e8, many=2e8, few_videos=4)
    assert "20 times as long" in "\n".join(even.lines()) and "1.10 times as much" in "\n".join(even.lines())


@pytest.mark.skipif(not can_measure_memory(), reason="this system does not report the memory of other processes")
def test_the_measured_extraction_runs_and_reports_failures(folder, tmp_path):
    import subprocess
    import sys

    (folder / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    out = tmp_path / "out" / "feats.h5"
    arguments = [str(folder), str(out), str(bench_memory.TINY_CLIP), "2.0", "decord"]
    done = subprocess.run(
        [sys.executable, "-c", bench_memory._EXTRACT_SCRIPT, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 1 and "c.mp4: truncated" in done.stderr
    assert CacheReader(out).video_ids == ["a", "b"]
    shutil.rmtree(out.parent)
