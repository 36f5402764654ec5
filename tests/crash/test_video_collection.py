"""Extracts a collection of good, damaged and fake videos: each gives the row of the cache that its case expects.

The long tests truncate videos at hundreds of positions and flip bytes at hundreds of positions:

    COSTL_FIGURES=1 python -m pytest tests/crash/test_video_collection.py -n 0 -m long
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numbered_videos import decode_with_pyav, frame_times, make_video, read_number, read_numbers
from processes import json_summary, part_stamps
from video_collection import (
    DECODERS,
    EITHER,
    FASTSTART,
    OK,
    VideoCase,
    expected_times_s,
    ffprobe_times_s,
    flipped,
    frame_indices_at,
    pyav_times_s,
    skip_without,
    write_collection,
)

from costl.commands import main
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import open_video
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions
from costl.pipeline.videos import printable, safe_id
from costl.pipeline.world.write_world import TINY_CLIP

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
FPS = 2.0


@dataclass(frozen=True)
class Collection:
    """The written collection (in `home`/w), the decoder that it was extracted with, and its cache."""

    home: Path
    cases: dict[str, VideoCase]
    decoder: str

    @property
    def cache(self) -> Path:
        return self.home / "feats.h5"

    def path(self, name: str) -> Path:
        return self.home / "w" / name

    def extract(self) -> tuple[int, dict, str]:
        return extract(self.home, self.decoder)


def extract(home: Path, decoder: str) -> tuple[int, dict, str]:
    """(exit code, summary from --json, stderr) of `costl extract`."""
    paths = ("--videos", home / "w", "--annotations", home / "queries.jsonl", "--out", home / "feats.h5")
    options = ("--weights", TINY_CLIP, "--fps", FPS, "--decoder", decoder, "--device", "cpu", "--workers", 2, "--json")
    code, out, err = run_command("extract", *paths, *options)
    return code, json_summary(out), err


def run_command(*arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a `costl` command in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def write_query(home: Path, video_id: str) -> None:
    row = {"qid": 1, "query": "a number", "vid": video_id, "duration": 2.4}
    (home / "queries.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, VideoCase]]:
    """(the folder of the written collection, its cases)."""
    home = tmp_path_factory.mktemp("collection")
    write_query(home, "steady")
    return home, write_collection(home / "w")


@pytest.fixture(scope="module", params=DECODERS)
def collection(written, request, tmp_path_factory) -> Collection:
    """The collection after one extraction, once for each decoder."""
    skip_without(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    source, cases = written
    (folder / "w").symlink_to(source / "w")
    shutil.copy(source / "queries.jsonl", folder)
    collection = Collection(folder, cases, request.param)
    code, _, err = collection.extract()
    assert code == 1 and "Traceback" not in err, err
    return collection


@pytest.mark.promise(2)
def test_every_video_of_the_collection_gives_the_expected_row(collection, report_figure):
    rows = {row.id: row for row in CacheReader(collection.cache).rows}
    assert len(rows) == len(collection.cases) >= 75
    for name, case in collection.cases.items():
        row = rows[safe_id(Path(name).stem)]
        assert row.name == printable(Path(name).stem)
        assert row.status == case.status or case.status == EITHER, (name, row)
        assert case.reason in row.reason and "\n" not in row.reason.replace(row.name, ""), (name, row)
        assert row.ok or row.reason.startswith(printable(name)), (name, row)
    counts = dict(Counter(row.status for row in rows.values()))
    report_figure(f"{collection.decoder}: a collection of {len(rows)} videos: {counts}")


@pytest.mark.promise(6)
def test_every_frame_has_the_time_that_pyav_and_ffprobe_give(collection, report_figure):
    reader = CacheReader(collection.cache)
    references = [pyav_times_s]
    if shutil.which("ffprobe"):
        references.append(ffprobe_times_s)
    names = [name for name, case in collection.cases.items() if case.status == OK]
    for name in names:
        row = reader.row(Path(name).stem)
        cached_s = reader.times_s(Path(name).stem)
        for reference in references:
            frames_s = reference(collection.path(name))
            assert frames_s[-1] < row.duration_s <= frames_s[-1] + 2 * np.diff(frames_s, prepend=-0.04).max(), name
            expected_s, half_s = expected_times_s(frames_s, Grid(FPS, row.duration_s).centres_s())
            assert (np.abs(cached_s - expected_s) <= half_s).all(), (name, reference, cached_s, expected_s)
    sources = " and ".join(reference.__name__ for reference in references)
    report_figure(f"{collection.decoder}: {len(names)} videos with the times of {sources}")
    assert len(names) >= 35


def test_sampled_frames_are_those_on_screen_at_their_times(collection):
    for name, case in collection.cases.items():
        if case.status != OK or name.startswith("rotated"):
            continue
        with open_video(collection.path(name), FrameOptions(collection.decoder)) as video:
            wanted_s = Grid(FPS, video.duration_s).centres_s()
            sampled = [number for frames in video.sample(wanted_s) for number in read_numbers(frames.pixels)]
        _, pictures = decode_with_pyav(collection.path(name))
        indices = frame_indices_at(pyav_times_s(collection.path(name)), wanted_s)
        assert sampled == [read_number(pictures[i]) for i in indices], name


def test_a_second_run_decodes_nothing_and_status_and_verify_agree(collection):
    before = part_stamps(collection.cache)
    first = {row.name: row for row in CacheReader(collection.cache).rows}
    code, summary, _ = collection.extract()
    whole = {name for name, row in first.items() if row.ok}
    # The threads of decord conceal damage in another way each time, so that a refused video may be read the next time.
    gained = set(summary["done"])
    assert gained <= {Path(name).stem for name, case in collection.cases.items() if case.status == EITHER} - whole
    assert code == 1 and summary["changed"] == [] and set(summary["skipped"]) == whole
    statuses = {row["name"]: row["status"] for row in summary["failed"]}
    assert statuses == {name: row.status for name, row in first.items() if not row.ok and name not in gained}
    rows = CacheReader(collection.cache).rows
    assert before.items() <= part_stamps(collection.cache).items()
    assert [row for row in rows if row.name not in gained] == [row for row in first.values() if row.name not in gained]
    whole |= gained
    code, out, _ = run_command("cache", "verify", collection.cache)
    assert code == 0 and f"{len(whole) + 1} of {len(whole) + 1} files are whole." in out
    code, out, _ = run_command("cache", "status", collection.cache)
    assert code == 0 and f"{len(whole)} of {len(rows)} videos have features." in out
    code, out, _ = run_command("cache", "status", collection.cache, "--all")
    counts = Counter(row.status for row in rows if not row.ok)
    assert f"Without: {counts['failed']} failed." in out and len(counts) == 1
    lines = out.splitlines()
    assert sum(line.split()[-1] == "s" for line in lines) == len(whole), "a line for every video, whatever its name"


# Long tests


FORMATS = {
    "mp4, index last": ("mp4", {}),
    "mp4, index first": ("mp4", {"container_options": FASTSTART}),
    "mkv": ("mkv", {}),
    "webm": ("webm", {"codec": "libvpx-vp9", "options": {"bf": "0", "cpu-used": "8"}}),
    "avi": ("avi", {"codec": "mpeg4", "options": {"b": "4000000"}, "ticks": 25}),
}
CUTS, FLIPS = 120, 120


def videos_of_formats(folder: Path) -> list[tuple[str, bytes]]:
    """(suffix, content) of a video in each format."""
    folder.mkdir()
    videos = []
    for number, (suffix, options) in enumerate(FORMATS.values()):
        path = make_video(folder / f"{number}.{suffix}", frame_times(50), **options)
        videos.append((suffix, path.read_bytes()))
    return videos


def write_damaged(home: Path, damaged: list[tuple[str, bytes]]) -> None:
    """Write damaged videos and a good one after every four, because twenty failures in a row would stop the run."""
    (home / "w").mkdir()
    make_video(home / "w" / "0-steady.mp4", frame_times(10))
    for number, (suffix, data) in enumerate(damaged):
        (home / "w" / f"1-{number:05}.{suffix}").write_bytes(data)
        if number % 4 == 3:
            os.link(home / "w" / "0-steady.mp4", home / "w" / f"1-{number:05}-whole.mp4")
    write_query(home, "0-steady")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_video_truncated_anywhere_has_no_features_but_a_reason(tmp_path, decoder, report_figure):
    skip_without(decoder)
    rng = np.random.default_rng(5)
    damaged = [
        (suffix, data[:length])
        for suffix, data in videos_of_formats(tmp_path / "formats")
        for length in sorted({0, 1, len(data) - 1, *rng.integers(2, len(data) - 1, CUTS).tolist()})
    ]
    write_damaged(tmp_path, damaged)
    code, _, err = extract(tmp_path, decoder)
    assert code == 1 and "Traceback" not in err
    rows = [
        row for row in CacheReader(tmp_path / "feats.h5").rows if "whole" not in row.name and "steady" not in row.name
    ]
    assert len(rows) == len(damaged) and {row.status for row in rows} == {"failed"}
    reasons = Counter(row.reason.partition(": ")[2] for row in rows)
    report_figure(f"{decoder}: {len(damaged)} truncations of {len(FORMATS)} videos, {len(rows)} refused")
    report_figure("\n".join(f"{count:6} {reason}" for reason, count in reasons.most_common()))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_video_with_flipped_bytes_has_features_or_a_reason(tmp_path, decoder, report_figure):
    skip_without(decoder)
    damaged = [
        (suffix, flipped(seed, 600 if seed % 2 else None)(data))
        for suffix, data in videos_of_formats(tmp_path / "formats")
        for seed in range(FLIPS)
    ]
    write_damaged(tmp_path, damaged)
    code, _, err = extract(tmp_path, decoder)
    assert code == 1 and "Traceback" not in err
    reader = CacheReader(tmp_path / "feats.h5")
    rows = [row for row in reader.rows if "whole" not in row.name and "steady" not in row.name]
    assert len(rows) == len(damaged) and "pending" not in {row.status for row in rows}
    assert all(row.ok or (row.reason.startswith(row.name) and "\n" not in row.reason) for row in rows)
    for row in rows:
        if row.ok:
            reader.verify(row.name)
            assert np.isfinite(reader.tokens(row.name)).all()
    counts = dict(Counter(row.status for row in rows))
    report_figure(f"{decoder}: {len(damaged)} videos with eight flipped bytes: {counts}")
