"""The decoder benchmark: all decoders return the right frames, and shares follow from rates."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from numbered_videos import cut_without_decoding, frame_times, make_video, read_numbers, variable_frame_times

from costl.commands import main
from costl.pipeline.bench.decode import bench_decode, decode_table, same_frames
from costl.pipeline.bench.decode_entrants import PLAIN, available_decoders, decord_indices, request_frames
from costl.pipeline.errors import CostlError, UsageError

AVAILABLE = available_decoders()


@pytest.mark.parametrize("times_s", [frame_times(100), variable_frame_times(60)], ids=["steady", "uneven"])
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_decoder_gives_the_frame_on_screen_at_each_wanted_time(name, times_s, tmp_path):
    path = make_video(tmp_path / "a.mp4", times_s)
    request = request_frames(path, 2.0, 4.0)
    expected = [int(np.searchsorted(times_s, 0.25 + 0.5 * i + 1e-6, side="right")) - 1 for i in range(8)]
    pictures = np.concatenate(list(AVAILABLE[name](request)))
    assert pictures.dtype == np.uint8 and pictures.shape == (8, 48, 64, 3)
    assert read_numbers(pictures) == expected


def test_a_decoder_with_wrong_frames_has_a_lower_share_of_equal_frames(tmp_path):
    source = make_video(tmp_path / "whole.mp4", frame_times(200), options={"g": "50"})
    request = request_frames(cut_without_decoding(source, tmp_path / "cut.mp4", 3.0), 2.0, 4.0)
    shares = same_frames(request, {name: AVAILABLE[name] for name in ("ours: decord", "decord, get_batch")})
    # A known fault of decord: hidden frames shift all others.
    assert shares["ours: decord"] == 1.0 and shares["decord, get_batch"] < 1.0


def test_only_frames_of_the_first_seconds_are_requested(tmp_path):
    path = make_video(tmp_path / "a.mp4", frame_times(100))
    assert request_frames(path, 2.0, 1.5).times_s.tolist() == [0.25, 0.75, 1.25]
    assert len(request_frames(path, 2.0, 60.0).times_s) == 8


def test_shares_are_those_of_the_fastest_plain_library():
    ours, decord, av = "ours: pyav", *list(PLAIN)[:2]
    rates = {(1.0, ours): 100.0, (1.0, decord): 80.0, (1.0, av): 20.0, (2.0, ours): 50.0, (2.0, decord): 25.0, (2.0, av): 100.0}
    header, _, *rows = decode_table("c", rates, {ours: 1.0, decord: 0.5, av: 1.0})
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["c", "1 fps", "share", "2 fps", "share", "same frames"]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells[0] == [ours, "100.0", "1.25", "50.0", "0.50", "100%"]
    assert cells[1] == [decord, "80.0", "1.00", "25.0", "0.25", "50%"]


def test_the_command_has_a_line_for_every_decoder():
    done = CliRunner().invoke(main, ["bench", "decode", "--quick", "--repeats", "1", "--fps", "1"])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if line.startswith(tuple(f"| {name} " for name in AVAILABLE))]
    assert len(rows) == len(AVAILABLE) and all("100%" in row for row in rows)
    missing = [name for name in PLAIN if name not in AVAILABLE]
    assert [name for name in PLAIN if f"does not work here: {name}." in done.stdout] == missing


def test_a_video_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    with pytest.raises(CostlError, match=r"bad\.mp4"):
        bench_decode(videos=tmp_path, fps=[1.0], repeats=1)
    with pytest.raises(CostlError, match=r"bad\.mp4: decord cannot read it"):
        decord_indices(tmp_path / "bad.mp4", np.zeros(1))


def test_wrong_numbers_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="fps"):
        bench_decode(fps=[0.0])
    with pytest.raises(UsageError, match="no videos"):
        bench_decode(videos=tmp_path)
    done = CliRunner().invoke(main, ["bench", "decode", "--videos", str(tmp_path)])
    assert done.exit_code == 2 and "no videos" in done.stderr
