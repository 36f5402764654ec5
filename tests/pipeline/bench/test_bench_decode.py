"""The decoder benchmark: all decoders return the right frames, shares follow from rates, and notes name what is missing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from numbered_videos import cut_without_decoding, frame_times, make_video, read_numbers, variable_frame_times

from costl.commands import main
from costl.pipeline.bench import decode as bench
from costl.pipeline.bench.decode import DecodeBench, DecoderSpeed
from costl.pipeline.bench.decode_entrants import FFMPEG, OURS, PLAIN, request_frames, unavailable_reason
from costl.pipeline.errors import CostlError, UsageError

AVAILABLE = {name: decoder for name, decoder in (OURS | PLAIN).items() if not unavailable_reason(name)}


@pytest.mark.parametrize("times_s", [frame_times(100), variable_frame_times(60)], ids=["steady", "uneven"])
@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != FFMPEG])
def test_every_decoder_gives_the_frame_on_screen_at_each_wanted_time(name, times_s, tmp_path):
    path = make_video(tmp_path / "a.mp4", times_s)
    request = request_frames(path, 2.0, 4.0)
    expected = [int(np.searchsorted(times_s, 0.25 + 0.5 * i + 1e-6, side="right")) - 1 for i in range(8)]
    pictures = np.concatenate(list(AVAILABLE[name](request)))
    assert pictures.dtype == np.uint8 and pictures.shape == (8, 48, 64, 3)
    assert read_numbers(pictures) == expected


@pytest.mark.skipif(FFMPEG not in AVAILABLE, reason="ffmpeg is not on the path")
def test_ffmpeg_returns_the_frame_on_screen_or_its_neighbour(tmp_path):
    request = request_frames(make_video(tmp_path / "a.mp4", frame_times(100)), 2.0, 4.0)
    report = read_numbers(np.concatenate(list(PLAIN[FFMPEG](request))))
    # Versions of the filter differ in which of the two they take, and in whether there is a last frame.
    assert np.abs(np.array(report[:7]) - (6 + 12.5 * np.arange(7))).max() <= 1.5


def test_a_decoder_with_wrong_frames_has_a_lower_share_of_equal_frames(tmp_path):
    source = make_video(tmp_path / "whole.mp4", frame_times(200), options={"g": "50"})
    request = request_frames(cut_without_decoding(source, tmp_path / "cut.mp4", 3.0), 2.0, 4.0)
    shares = bench._check_frames(request, {"ours": OURS["ours: decord"], "plain": PLAIN["decord, get_batch"]})
    assert shares["ours"] == 1.0 and shares["plain"] < 1.0  # a known fault of decord: hidden frames shift all others


def test_only_frames_of_the_first_seconds_are_requested(tmp_path):
    path = make_video(tmp_path / "a.mp4", frame_times(100))
    assert request_frames(path, 2.0, 1.5).times_s.tolist() == [0.25, 0.75, 1.25]
    assert len(request_frames(path, 2.0, 60.0).times_s) == 8


def test_shares_compare_the_fastest_library_with_our_worst_case():
    def row(decoder: str, fps: float, cpu_s: float) -> DecoderSpeed:
        return DecoderSpeed(clips="c", decoder=decoder, fps=fps, frames=100, cpu_s=cpu_s, same=1.0)

    rows = [row("ours: a", 1, 1.0), row("ours: b", 1, 2.0), row("x", 1, 1.25), row("y", 1, 5.0)]
    rows += [row("ours: a", 2, 4.0), row("ours: b", 2, 2.0), row("x", 2, 8.0), row("y", 2, 1.0)]
    report = DecodeBench(tuple(rows), repeats=1)
    assert [report.share(one) for one in rows] == [1.25, 0.625, 1.0, 0.25, 0.25, 0.5, 0.125, 1.0]
    assert report.least_share() == 0.5
    assert "in the worst case: 0.50 (bar 0.95)" in "\n".join(report.lines())


def test_the_command_lists_every_decoder_with_consistent_numbers():
    runner = CliRunner()
    arguments = ["bench", "decode", "--quick", "--repeats", "1", "--fps", "1", "--json"]
    done = runner.invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {row["decoder"] for row in report["rows"]} == set(AVAILABLE)
    for row in report["rows"]:
        plain = [
            o["rate"] for o in report["rows"] if o["clips"] == row["clips"] and not o["decoder"].startswith("ours")
        ]
        assert row["rate"] == pytest.approx(row["frames"] / row["cpu_s"])
        assert row["share"] == pytest.approx(row["rate"] / max(plain))
        assert row["same"] == 1.0 or row["decoder"] == FFMPEG
    missing = [name for name in PLAIN if name not in AVAILABLE]
    assert [
        name for name in PLAIN if any(note.startswith(f"Not measured: {name}") for note in report["notes"])
    ] == missing


def test_a_video_that_a_decoder_cannot_read_is_left_out(tmp_path):
    make_video(tmp_path / "good.mp4", frame_times(50))
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    report = bench.bench_decode(videos=tmp_path, fps=[1.0], repeats=1)
    assert {row.frames for row in report.rows} == {2}
    assert any(note.startswith("Left out: bad.mp4 (VideoError") for note in report.notes)
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(CostlError, match=r"no video that every decoder reads.*bad\.mp4"):
        bench.bench_decode(videos=tmp_path, fps=[1.0], repeats=1)


def test_wrong_numbers_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="fps"):
        bench.bench_decode(fps=[0.0])
    with pytest.raises(UsageError, match="no videos"):
        bench.bench_decode(videos=tmp_path)
    done = CliRunner().invoke(main, ["bench", "decode", "--videos", str(tmp_path)])
    assert done.exit_code == 2 and "no videos" in done.stderr


def test_ffmpeg_is_unavailable_if_it_is_not_on_the_path(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert unavailable_reason(FFMPEG) == "ffmpeg is not on the path"
