"""The race of extraction with its halves: the numbers follow from each other, and the stand-in is called one."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_clip import write_clip
from videos import make_clip, steady

from costl.commands import main
from costl.pipeline.bench import extract as bench
from costl.pipeline.bench import memory as bench_memory
from costl.pipeline.bench.clips import RATE, Clips, Rendering, render, repeated
from costl.pipeline.bench.extract_entrants import Imitated, as_clip, extract_all, full_batches
from costl.pipeline.bench.extract_tables import Race, table
from costl.pipeline.bench.measure import Cost, can_see_memory
from costl.pipeline.bench.memory import Memory
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import load_clip
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import How
from costl.pipeline.run.engine import cores
from costl.pipeline.videos import Video, find_videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip("tiny", str(write_clip(tmp_path_factory.mktemp("clip"))), device="cpu")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "ab":
        make_clip(tmp_path / "videos" / f"{name}.mp4", steady(100))
    return tmp_path / "videos"


def race(**changes) -> Race:
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
    return Race(**{**common, **costs, "shared": True, **changes})


def test_where_halves_share_the_cores_the_limit_is_the_cpu_seconds_of_both_on_all_of_them():
    assert race().limit_s == 5.0 and race().ratio == 0.8  # (6 + 4) / 2 cores
    assert race(decode=Cost(5.5, 6.0)).limit_s == 5.5  # one long video keeps one core busy for longer than that


def test_with_an_accelerator_the_limit_is_the_slower_half():
    on_gpu = race(shared=False)
    assert on_gpu.limit_s == 4.0 and on_gpu.ratio == 0.64 and on_gpu.of_forward == 0.32
    assert race(shared=False, forward=Cost(5.0, 0.1)).ratio == 0.8


def test_the_imitated_accelerator_is_limited_by_decoding_or_by_its_own_rate():
    assert race().imitated_ratio is None
    assert race(imitated=Cost(5.0, 1.0), rate=1000.0).imitated_ratio == 0.8  # 4 s of decoding
    assert race(imitated=Cost(12.5, 1.0), rate=10.0).imitated_ratio == 0.8  # 10 s at 10 frames a second


def test_times_faster_compares_frames_a_second():
    assert race().times_faster is None
    assert race(plain=Cost(25.0, 40.0), plain_frames=100).times_faster == 4.0
    assert race(plain=Cost(25.0, 40.0), plain_frames=50).times_faster == 8.0


def test_the_table_names_the_stand_in_and_groups_by_model():
    races = [
        race(imitated=Cost(5.0, 1.0), rate=50.0),
        race(model="N", shared=False, plain=Cost(9.0, 9.0), plain_frames=90),
    ]
    text = table(races, 2)
    assert "An imitated accelerator (a stand-in for CLIP that sleeps; no network runs)" in text
    assert text.index("M on d") < text.index("N on d") < text.index("imitated") < text.index("straightforward way")
    assert "imitated" not in table(races[1:], 2) and "straightforward" not in table(races[:1], 2)


def test_the_command_measures_all_of_it_and_adds_up():
    done = CliRunner().invoke(main, ["bench", "extract", "--quick", "--repeats", "1", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [r["clips"] for r in found["races"]] == ["144p, key frame every 150", "the sample world"]
    for r in found["races"]:
        assert r["model"] == "costl-tiny" and r["shared"] and r["cores"] == cores()
        halves = [r["decode"]["wall_s"], r["forward"]["wall_s"]]
        shared = (r["decode"]["cpu_s"] + r["forward"]["cpu_s"]) / r["cores"]
        assert r["limit_s"] == pytest.approx(max(*halves, shared))
        assert r["ratio"] == pytest.approx(r["limit_s"] / r["extract"]["wall_s"])
        assert r["imitated_ratio"] == pytest.approx(max(halves[0], r["frames"] / r["rate"]) / r["imitated"]["wall_s"])
        assert r["times_faster"] == pytest.approx(r["plain"]["wall_s"] / r["extract"]["wall_s"])
        assert r["plain_frames"] == r["frames"] > 0
        assert min(r["decode"]["cpu_s"], r["forward"]["cpu_s"], r["extract"]["cpu_s"]) > 0
    assert found["memory"] is None and any("memory was not measured" in note for note in found["notes"])


def test_bad_videos_of_a_folder_are_left_out_of_every_race_by_name(folder, tmp_path, monkeypatch):
    weights = str(write_clip(tmp_path / "clip"))
    (folder / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    monkeypatch.setattr(bench, "can_see_memory", lambda: False)
    found = bench.bench_extract(videos=folder, models=["tiny"], weights=weights, repeats=1, fps=2.0, device="cpu")
    assert [(r.videos, r.frames, r.plain_frames, r.model) for r in found.races] == [(2, 16, 16, "tiny")]
    assert any(note.startswith("Left out: c.mp4") for note in found.notes)
    assert "this system does not tell" in found.notes[-1]


def test_a_race_that_is_not_fair_is_none(clip, folder, tmp_path):
    videos = find_videos(folder)
    extract_all(videos, clip, tmp_path / "feats.h5", fps=2.0, how=How(), batch=4)
    ours = CacheReader(tmp_path / "feats.h5")
    runner = bench._Bench(
        fps=2.0, how=How(), batch=4, rate=None, repeats=1, quick=True, own_clips=True, tell=lambda _: None
    )
    course = runner._look(Clips("c", tuple(videos)), clip, 4)
    assert course.frames == 16 and {len(images) for images in course.batches} == {4}
    bench.plain_extract(course.plain, clip, tmp_path)
    runner._compare(course, clip, ours, tmp_path)
    wrong = np.load(tmp_path / "b.npy")
    np.save(tmp_path / "b.npy", wrong[::-1])
    with pytest.raises(CostlError, match=r"b\.mp4: tokens differ by .* no fair race"):
        runner._compare(course, clip, ours, tmp_path)
    runner.own_clips = False
    runner._compare(course, clip, ours, tmp_path)
    assert runner.notes == [note for note in runner.notes if note.startswith("b.mp4: tokens differ")] != []


def test_the_stand_in_goes_through_the_real_extraction_and_writes_a_whole_cache(clip, folder, tmp_path):
    stand_in = Imitated(clip, rate=1e6)
    extract_all(find_videos(folder), as_clip(stand_in), tmp_path / "feats.h5", fps=2.0, how=How(), batch=4)
    cache = CacheReader(tmp_path / "feats.h5")
    assert cache.video_ids == ["a", "b"] and "imitated" in cache.fingerprint["model"]
    rows, columns = clip.patch_grid
    assert cache.tokens("a").shape == (8, 1 + rows * columns, clip.width)


def test_the_stand_in_takes_its_time_and_no_cpu(clip):
    images = Imitated(clip, rate=20.0).prepare(np.zeros((6, 48, 64, 3), np.uint8))
    tokens, cost = bench.cost_of(lambda: Imitated(clip, rate=20.0).encode_images(images))
    assert len(images) == len(tokens) == 6 and tokens.dtype == np.float16
    assert cost.wall_s >= 0.3 and cost.cpu_s < 0.2


def test_frames_alone_fill_whole_batches():
    images = [torch.arange(3.0)[:, None], torch.arange(3.0, 7.0)[:, None]]
    assert [b[:, 0].tolist() for b in full_batches(images, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert [b[:, 0].tolist() for b in full_batches(images, 10)] == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]


@pytest.mark.parametrize("wanted", [{"repeats": 0}, {"batch": -1}, {"rate": 0.0}])
def test_what_cannot_be_meant_is_refused_before_anything_is_rendered(wanted):
    with pytest.raises(UsageError, match=next(iter(wanted))):
        bench.bench_extract(**wanted)


def test_an_unknown_model_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no open_clip model is called 'ViT-B-33'"):
        bench.bench_extract(models=["ViT-B-33"], device="cpu")
    done = CliRunner().invoke(main, ["bench", "extract", "--videos", str(tmp_path)])
    assert done.exit_code == 2 and "no videos" in done.stderr


def test_a_rendered_clip_moves_and_has_its_key_frames_where_it_was_asked(tmp_path):
    render(Rendering(96, 20, 2, 100), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.is_keyframe]
        container.seek(0)
        first, *rest = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
    assert sorted(map(float, keys)) == pytest.approx([0, 20 / RATE, 40 / RATE])
    assert len(rest) == 2 * RATE - 1 and first.shape == (96, 170)
    assert np.abs(rest[29] - first).mean() > 3 and first.std() > 10


def test_a_video_repeated_in_its_file_is_so_many_times_as_long_and_decodes(clip, tmp_path):
    source = make_clip(tmp_path / "a.mp4", steady(100))
    repeated(source, tmp_path / "long.mp4", 5)
    extract_all([Video("long", tmp_path / "long.mp4")], clip, tmp_path / "feats.h5", fps=1.0, how=How(), batch=4)
    assert CacheReader(tmp_path / "feats.h5").row("long").duration_s == pytest.approx(20.0, abs=0.3)


def test_links_make_many_videos_of_few(folder, tmp_path):
    several = Clips("c", tuple(find_videos(folder))).several(5, tmp_path / "many")
    assert [video.id for video in several.videos] == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    assert several.videos[0].path.read_bytes() == (folder / "a.mp4").read_bytes()


@pytest.mark.skipif(not can_see_memory(), reason="this system does not tell the memory of other processes")
def test_memory_that_grows_with_the_videos_is_seen_to_grow(folder, monkeypatch):
    grows = "import sys, numpy, time, pathlib\n"
    grows += "size = sum(p.stat().st_size for p in pathlib.Path(sys.argv[1]).iterdir())\n"
    grows += "kept = numpy.ones(size * 100); time.sleep(0.3)"
    monkeypatch.setattr(bench_memory, "_ALONE", grows)
    found = bench_memory.bench_memory(Video("a", folder / "a.mp4"), fps=1.0, decoder="decord", tell=lambda _: None)
    assert found.data()["longer"] > 2 and found.data()["more"] > 1.5
    even = Memory(short=1e8, long=1.1e8, few=2e8, many=2e8, few_videos=4)
    assert "20 times as long" in "\n".join(even.lines()) and "1.10 times as much" in "\n".join(even.lines())


@pytest.mark.skipif(not can_see_memory(), reason="this system does not tell the memory of other processes")
def test_the_extraction_whose_memory_is_measured_runs_and_fails_aloud(folder, tmp_path):
    import subprocess
    import sys

    (folder / "c.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    out = tmp_path / "out" / "feats.h5"
    arguments = [str(folder), str(out), str(bench_memory.TINY_CLIP), "2.0", "decord"]
    done = subprocess.run([sys.executable, "-c", bench_memory._ALONE, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "c.mp4: truncated" in done.stderr
    assert CacheReader(out).video_ids == ["a", "b"]
    shutil.rmtree(out.parent)
