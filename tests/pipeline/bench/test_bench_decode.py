"""The race of decoders: all show the right frames, the shares follow from the rates, and what is missing is named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from videos import cut_without_decoding, make_clip, read_numbers, steady, uneven

from costl.commands import main
from costl.pipeline.bench import decode as bench
from costl.pipeline.bench.decode import DecodeBench, Row
from costl.pipeline.bench.decode_entrants import FFMPEG, OURS, PLAIN, wanted_of, why_not_here
from costl.pipeline.errors import CostlError, UsageError

HERE = {name: decoder for name, decoder in (OURS | PLAIN).items() if not why_not_here(name)}


@pytest.mark.parametrize("times_s", [steady(100), uneven(60)], ids=["steady", "uneven"])
@pytest.mark.parametrize("name", [name for name in HERE if name != FFMPEG])
def test_every_decoder_shows_the_last_frame_that_began_before_each_wanted_time(name, times_s, tmp_path):
    path = make_clip(tmp_path / "a.mp4", times_s)
    wanted = wanted_of(path, 2.0, 4.0)
    expected = [int(np.searchsorted(times_s, 0.25 + 0.5 * i + 1e-6, side="right")) - 1 for i in range(8)]
    pictures = np.concatenate(list(HERE[name](wanted)))
    assert pictures.dtype == np.uint8 and pictures.shape == (8, 48, 64, 3)
    assert read_numbers(pictures) == expected


@pytest.mark.skipif(FFMPEG not in HERE, reason="ffmpeg is not on the path")
def test_ffmpeg_gives_the_frame_there_or_its_neighbour(tmp_path):
    wanted = wanted_of(make_clip(tmp_path / "a.mp4", steady(100)), 2.0, 4.0)
    found = read_numbers(np.concatenate(list(PLAIN[FFMPEG](wanted))))
    # Which of them its filter takes, and whether a last one comes, has changed between its versions.
    assert np.abs(np.array(found[:7]) - (6 + 12.5 * np.arange(7))).max() <= 1.5


def test_a_decoder_that_shows_other_frames_is_told_by_its_share_of_same_ones(tmp_path):
    source = make_clip(tmp_path / "whole.mp4", steady(200), options={"g": "50"})
    wanted = wanted_of(cut_without_decoding(source, tmp_path / "cut.mp4", 3.0), 2.0, 4.0)
    shares = bench._look(wanted, {"ours": OURS["ours: decord"], "plain": PLAIN["decord, get_batch"]})
    assert shares["ours"] == 1.0 and shares["plain"] < 1.0  # decord's known fault: the hidden frames shift all the rest


def test_only_the_first_seconds_are_asked_for(tmp_path):
    path = make_clip(tmp_path / "a.mp4", steady(100))
    assert wanted_of(path, 2.0, 1.5).times_s.tolist() == [0.25, 0.75, 1.25]
    assert len(wanted_of(path, 2.0, 60.0).times_s) == 8


def test_shares_are_of_the_fastest_plain_library_and_the_worst_case_of_our_best_counts():
    def row(decoder: str, fps: float, cpu_s: float) -> Row:
        return Row(clips="c", decoder=decoder, fps=fps, frames=100, cpu_s=cpu_s, same=1.0)

    rows = [row("ours: a", 1, 1.0), row("ours: b", 1, 2.0), row("x", 1, 1.25), row("y", 1, 5.0)]
    rows += [row("ours: a", 2, 4.0), row("ours: b", 2, 2.0), row("x", 2, 8.0), row("y", 2, 1.0)]
    found = DecodeBench(tuple(rows), repeats=1)
    assert [found.share(one) for one in rows] == [1.25, 0.625, 1.0, 0.25, 0.25, 0.5, 0.125, 1.0]
    assert found.least_share() == 0.5
    assert "worst: 0.50 (bar 0.95)" in "\n".join(found.lines())


def test_the_command_shows_every_decoder_and_adds_up():
    runner = CliRunner()
    arguments = ["bench", "decode", "--quick", "--repeats", "1", "--fps", "1", "--json"]
    done = runner.invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["decoder"] for row in found["rows"]} == set(HERE)
    for row in found["rows"]:
        plain = [o["rate"] for o in found["rows"] if o["clips"] == row["clips"] and not o["decoder"].startswith("ours")]
        assert row["rate"] == pytest.approx(row["frames"] / row["cpu_s"])
        assert row["share"] == pytest.approx(row["rate"] / max(plain))
        assert row["same"] == 1.0 or row["decoder"] == FFMPEG
    missing = [name for name in PLAIN if name not in HERE]
    assert [
        name for name in PLAIN if any(note.startswith(f"Not measured: {name}") for note in found["notes"])
    ] == missing


def test_a_video_that_somebody_cannot_read_is_left_out_by_name(tmp_path):
    make_clip(tmp_path / "good.mp4", steady(50))
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    found = bench.bench_decode(videos=tmp_path, fps=[1.0], repeats=1)
    assert {row.frames for row in found.rows} == {2}
    assert any(note.startswith("Left out: bad.mp4 (VideoError") for note in found.notes)
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(CostlError, match=r"no video that every decoder reads.*bad\.mp4"):
        bench.bench_decode(videos=tmp_path, fps=[1.0], repeats=1)


def test_what_cannot_be_meant_is_refused(tmp_path):
    with pytest.raises(UsageError, match="fps"):
        bench.bench_decode(fps=[0.0])
    with pytest.raises(UsageError, match="no videos"):
        bench.bench_decode(videos=tmp_path)
    done = CliRunner().invoke(main, ["bench", "decode", "--videos", str(tmp_path)])
    assert done.exit_code == 2 and "no videos" in done.stderr


def test_ffmpeg_is_missing_where_it_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert why_not_here(FFMPEG) == "ffmpeg is not on the path"
