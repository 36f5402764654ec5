"""One extraction over a whole zoo of videos: it ends by itself, and each ends as the row that the list says.

The long variant cuts films at hundreds of points and flips bytes at hundreds of places:

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
import videos as clips
from click.testing import CliRunner
from processes import told, written
from video_collection import (
    DECODERS,
    EITHER,
    FASTSTART,
    OK,
    Animal,
    flipped,
    populate,
    probed_s,
    right_times_s,
    shown_s,
    skip_without,
)

from costl.commands import main
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import open_video
from costl.pipeline.grid import Grid
from costl.pipeline.options import How
from costl.pipeline.videos import readable, safe_id
from costl.pipeline.world.sample import TINY_CLIP

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
FPS = 2.0


@dataclass(frozen=True)
class Zoo:
    """A zoo, the decoder it was extracted with, and its cache."""

    home: Path
    animals: dict[str, Animal]
    decoder: str

    @property
    def cache(self) -> Path:
        return self.home / "feats.h5"

    def path(self, name: str) -> Path:
        return self.home / "w" / name

    def extract(self) -> tuple[int, dict, str]:
        return extract(self.home, self.decoder)


def extract(home: Path, decoder: str) -> tuple[int, dict, str]:
    """Exit code, what the command said at its end, and its words."""
    where = ("--videos", home / "w", "--annotations", home / "ask.jsonl", "--out", home / "feats.h5")
    how = ("--weights", TINY_CLIP, "--fps", FPS, "--decoder", decoder, "--device", "cpu", "--workers", 2, "--json")
    return here("extract", *where, *how)


def here(*arguments: object) -> tuple[int, dict, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, told(done.stdout) if "--json" in arguments else done.stdout, done.stderr


def ask(home: Path, name: str) -> None:
    row = {"qid": 1, "query": "a number", "vid": name, "duration": 2.4}
    (home / "ask.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> tuple[Path, dict[str, Animal]]:
    home = tmp_path_factory.mktemp("zoo")
    ask(home, "steady")
    return home, populate(home / "w")


@pytest.fixture(scope="module", params=DECODERS)
def zoo(home, request, tmp_path_factory) -> Zoo:
    """The zoo after one extraction, once for each decoder."""
    skip_without(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "w").symlink_to(home[0] / "w")
    shutil.copy(home[0] / "ask.jsonl", folder)
    zoo = Zoo(folder, home[1], request.param)
    code, _, err = zoo.extract()
    assert code == 1 and "Traceback" not in err, err
    return zoo


@pytest.mark.promise(2)
def test_every_animal_ends_as_the_row_that_the_list_says(zoo, tell):
    rows = {row.id: row for row in CacheReader(zoo.cache).rows}
    assert len(rows) == len(zoo.animals) >= 75
    for name, animal in zoo.animals.items():
        row, (status, reason) = rows[safe_id(Path(name).stem)], animal.expected(zoo.decoder)
        assert row.name == readable(Path(name).stem)
        assert row.status == status or status == EITHER, (name, row)
        assert reason in row.reason and "\n" not in row.reason.replace(row.name, ""), (name, row)
        assert row.ok or row.reason.startswith(readable(name)), (name, row)
    tell(f"{zoo.decoder}: a zoo of {len(rows)} videos: {dict(Counter(row.status for row in rows.values()))}")


@pytest.mark.promise(6)
def test_every_frame_has_the_time_at_which_pyav_and_ffprobe_show_it(zoo, tell):
    reader, looked_at = CacheReader(zoo.cache), 0
    witnesses = [shown_s, *([probed_s] if shutil.which("ffprobe") else [])]
    for name, animal in zoo.animals.items():
        if animal.expected(zoo.decoder)[0] != OK:
            continue
        row, found_s = reader.row(Path(name).stem), reader.times_s(Path(name).stem)
        for witness in witnesses:
            frames_s = witness(zoo.path(name))
            assert frames_s[-1] < row.duration_s <= frames_s[-1] + 2 * np.diff(frames_s, prepend=-0.04).max(), name
            right_s, half_s = right_times_s(frames_s, Grid(FPS, row.duration_s).centres_s())
            assert (np.abs(found_s - right_s) <= half_s).all(), (name, witness, found_s, right_s)
        looked_at += 1
    tell(f"{zoo.decoder}: {looked_at} videos with the times that {' and '.join(w.__name__ for w in witnesses)} give")
    assert looked_at >= 35


def test_the_pictures_are_those_of_their_times(zoo):
    for name, animal in zoo.animals.items():
        if animal.expected(zoo.decoder)[0] != OK or name.startswith("turned"):
            continue
        with open_video(zoo.path(name), How(zoo.decoder)) as video:
            wanted_s = Grid(FPS, video.duration_s).centres_s()
            found = [number for frames in video.sample(wanted_s) for number in clips.read_numbers(frames.pixels)]
        _, pictures = clips.shown_pictures(zoo.path(name))
        which = np.searchsorted(shown_s(zoo.path(name)), wanted_s + 1e-6, side="right") - 1
        assert found == [clips.read_number(pictures[i]) for i in np.maximum(which, 0)], name


def test_a_second_run_decodes_nothing_again_and_status_and_verify_are_right(zoo):
    before = written(zoo.cache)
    rows = CacheReader(zoo.cache).rows
    code, said, _ = zoo.extract()
    whole = {row.name for row in rows if row.ok}
    assert code == 1 and said["done"] == said["changed"] == [] and set(said["skipped"]) == whole
    assert {row["name"]: row["status"] for row in said["failed"]} == {r.name: r.status for r in rows if not r.ok}
    assert written(zoo.cache) == before and CacheReader(zoo.cache).rows == rows
    code, out, _ = here("cache", "verify", zoo.cache, "--videos", zoo.home / "w")
    assert code == 0 and f"{len(whole) + 1} of {len(whole) + 1} files are whole." in out
    assert f"{len(whole)} of {len(whole)} videos are those that were extracted." in out
    code, out, _ = here("cache", "status", zoo.cache)
    assert code == 0 and f"{len(whole)} of {len(rows)} videos have features." in out
    code, out, _ = here("cache", "status", zoo.cache, "--all")
    counts = Counter(row.status for row in rows if not row.ok)
    assert f"Without: {counts['failed']} failed." in out and len(counts) == 1
    lines = out.splitlines()
    assert sum(line.split()[-1] == "s" for line in lines) == len(whole), "a line for every video, whatever its name"


# The long variant


FILMS = {
    "mp4, index last": ("mp4", {}),
    "mp4, index first": ("mp4", {"container_options": FASTSTART}),
    "mkv": ("mkv", {}),
    "webm": ("webm", {"codec": "libvpx-vp9", "options": {"bf": "0", "cpu-used": "8"}}),
    "avi": ("avi", {"codec": "mpeg4", "options": {"b": "4000000"}, "ticks": 25}),
}
CUTS, FLIPS = 120, 120


def films(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Each film's suffix and bytes."""
    folder.mkdir()
    made = {}
    for number, (film, (suffix, options)) in enumerate(FILMS.items()):
        path = clips.make_clip(folder / f"{number}.{suffix}", clips.steady(50), **options)
        made[film] = suffix, path.read_bytes()
    return made


def between_whole_ones(home: Path, broken: list[tuple[str, bytes]]) -> None:
    """Writes them as files in a row, every fifth a whole film: twenty failures in a row would end the run."""
    (home / "w").mkdir()
    clips.make_clip(home / "w" / "0-steady.mp4", clips.steady(10))
    for number, (suffix, data) in enumerate(broken):
        (home / "w" / f"1-{number:05}.{suffix}").write_bytes(data)
        if number % 4 == 3:
            os.link(home / "w" / "0-steady.mp4", home / "w" / f"1-{number:05}-whole.mp4")
    ask(home, "0-steady")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("decoder", DECODERS)
def test_films_cut_anywhere_have_no_features_and_say_why(tmp_path, decoder, tell):
    skip_without(decoder)
    dice = np.random.default_rng(5)
    broken = [
        (suffix, data[:length])
        for suffix, data in films(tmp_path / "films").values()
        for length in sorted({0, 1, len(data) - 1, *dice.integers(2, len(data) - 1, CUTS).tolist()})
    ]
    between_whole_ones(tmp_path, broken)
    code, _, err = extract(tmp_path, decoder)
    assert code == 1 and "Traceback" not in err
    rows = [
        row for row in CacheReader(tmp_path / "feats.h5").rows if "whole" not in row.name and "steady" not in row.name
    ]
    assert len(rows) == len(broken) and {row.status for row in rows} == {"failed"}
    told = Counter(row.reason.partition(": ")[2] for row in rows)
    tell(f"{decoder}: {len(broken)} cuts of {len(FILMS)} films, {len(rows)} refused")
    tell("\n".join(f"{count:6} {reason}" for reason, count in told.most_common()))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("decoder", DECODERS)
def test_films_with_flipped_bytes_have_features_or_a_sentence(tmp_path, decoder, tell):
    skip_without(decoder)
    broken = [
        (suffix, flipped(seed, 600 if seed % 2 else None)(data))
        for suffix, data in films(tmp_path / "films").values()
        for seed in range(FLIPS)
    ]
    between_whole_ones(tmp_path, broken)
    code, _, err = extract(tmp_path, decoder)
    assert code == 1 and "Traceback" not in err
    reader = CacheReader(tmp_path / "feats.h5")
    rows = [row for row in reader.rows if "whole" not in row.name and "steady" not in row.name]
    assert len(rows) == len(broken) and "pending" not in {row.status for row in rows}
    assert all(row.ok or (row.reason.startswith(row.name) and "\n" not in row.reason) for row in rows)
    for row in rows:
        if row.ok:
            reader.verify(row.name)
            assert np.isfinite(reader.tokens(row.name)).all()
    tell(f"{decoder}: {len(broken)} films with eight flipped bytes: {dict(Counter(row.status for row in rows))}")
