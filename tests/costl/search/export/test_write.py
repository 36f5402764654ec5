"""Export of search results: to the terminal, into a file, into a folder; from real videos to frames in an editor."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from numbered_videos import (
    decode_with_pyav,
    frame_times,
    frames_on_screen,
    make_video,
    pyav_frame_numbers,
    read_number,
    variable_frame_times,
)

from costl.pipeline.errors import UsageError, VideoError
from costl.search.export.formats import FORMATS
from costl.search.export.write import choose_hit_format, is_folder, refuse_output, write_hits
from costl.search.hits import Hit, SearchResult

RATES = {"23.976": Fraction(24000, 1001), "25": Fraction(25), "29.97": Fraction(30000, 1001), "60": Fraction(60)}


def result(folder: Path, *names: str, spans=((0.5, 1.0),)) -> SearchResult:
    """Hits in each of these videos of `folder`; those of the second are a second later, and so on."""
    hits = [
        Hit("a cat", name, folder / name, 9.0, start_s + late, end_s + late, 0.5)
        for late, name in enumerate(names)
        for start_s, end_s in spans
    ]
    return SearchResult("a cat", tuple(hits), videos=9)


def write(results: SearchResult, output_format: str, out: Path | None, **options) -> tuple[list[Path], list[str]]:
    return write_hits([results], output_format=output_format, out=out, print_text=pytest.fail, **options)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("output_format", ["edl", "otio"])
def test_an_editor_shows_the_frame_that_was_on_screen(tmp_path, name, output_format):
    otio = pytest.importorskip("opentimelineio", reason="OpenTimelineIO comes with the extra `test`")
    if output_format == "edl":
        pytest.importorskip("otio_cmx3600_adapter", reason="the reader of EDL comes with the extra `test`")
    rate = RATES[name]
    path = make_video(tmp_path / "a.mp4", frame_times(90, rate), ticks=rate.numerator)
    times_s, shown = pyav_frame_numbers(path)
    starts_s = [0.0, 0.31, 0.7004, float(33 / rate), 1.2]
    out = tmp_path / f"hits.{output_format}"
    files = write(result(tmp_path, "a.mp4", spans=[(s, s + 0.2) for s in starts_s]), output_format, out)
    assert files == ([out], [])
    adapter = {"edl": "cmx_3600", "otio": "otio_json"}[output_format]
    rates = {"rate": float(rate)} if output_format == "edl" else {}
    timeline = otio.adapters.read_from_file(str(out), adapter, **rates)
    clips = [clip for track in timeline.tracks for clip in track]
    pictures = decode_with_pyav(path)[1]
    in_editor = [read_number(pictures[int(clip.source_range.start_time.value)]) for clip in clips]
    assert in_editor == frames_on_screen(times_s, shown, starts_s)
    last = [read_number(pictures[int(clip.source_range.end_time_inclusive().value)]) for clip in clips]
    assert last == frames_on_screen(times_s, shown, [s + 0.2 - 2e-6 for s in starts_s])


def test_videos_without_frame_numbers_are_reported_and_the_others_written(tmp_path):
    make_video(tmp_path / "a.mp4", frame_times(50))
    make_video(tmp_path / "v.mp4", variable_frame_times(50))
    results = result(tmp_path, "v.mp4", "a.mp4", "gone.mp4")
    files, failures = write(results, "edl", tmp_path / "o.edl")
    assert len(failures) == 2 and "v.mp4: its frame rate varies" in failures[0] and "gone.mp4: no such file" in failures[1]
    assert "a.mp4" in files[0].read_text() and "v.mp4" not in files[0].read_text()
    files, failures = write(results, "edl", tmp_path / "folder")
    assert files == [tmp_path / "folder" / "a.edl"] and len(failures) == 2
    with pytest.raises(VideoError, match=r"v\.mp4: its frame rate varies"):
        write(result(tmp_path, "v.mp4"), "otio", tmp_path / "o.otio")
    assert not (tmp_path / "o.otio").exists()
    assert write(results, "csv", tmp_path / "o.csv") == ([tmp_path / "o.csv"], [])


@pytest.mark.parametrize(("output_format", "suffix"), [("srt", ".srt"), ("vtt", ".vtt"), ("ffmetadata", ".ffmetadata")])
def test_a_folder_gets_a_file_for_each_video(tmp_path, output_format, suffix):
    results = result(tmp_path, "IMG_1.MP4", "x/b.mp4", "x/b.mov", "x/b.mp4.mkv")
    files, _ = write(results, output_format, tmp_path / "out")
    names = ["IMG_1", "x/b.mp4", "x/b.mov", "x/b.mp4.mkv"]
    assert files == [tmp_path / "out" / f"{name}{suffix}" for name in names]
    assert write(results, output_format, tmp_path / "out")[0] == files, "its own files are replaced"
    assert len({path.read_bytes() for path in files}) == 4, "each has its own hits"


def test_chapters_become_text_files_that_are_replaced_on_request_only(tmp_path):
    files, _ = write(result(tmp_path, "a.mp4", "b.mp4"), "chapters", tmp_path / "out")
    assert [path.name for path in files] == ["a.txt", "b.txt"] and files[1].read_text() == "00:00:00 b\n00:00:01 a cat\n"
    with pytest.raises(UsageError, match=r"a\.txt: exists, and is not an earlier output.*--overwrite"):
        write(result(tmp_path, "a.mp4"), "chapters", tmp_path / "out")
    write(result(tmp_path, "a.mp4"), "chapters", tmp_path / "out", overwrite=True)


def test_nothing_is_written_when_one_file_must_not_be(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.srt").write_text("mine")
    with pytest.raises(UsageError, match=r"b\.srt: exists"):
        write(result(tmp_path, "a.mp4", "b.mp4"), "srt", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.srt"]


@pytest.mark.parametrize("name", ["../../x.mp4", "/x.mp4", "a/../../../x.mp4"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    (path,), _ = write(result(tmp_path, name), "srt", tmp_path / "out")
    assert ".." not in path.parts and path.is_relative_to(tmp_path / "out")


def test_the_format_is_that_of_the_suffix_and_a_folder_has_none(tmp_path):
    assert [choose_hit_format(None, Path(f"a.{name.upper()}")) for name in FORMATS[1:]] == list(FORMATS[1:])
    assert choose_hit_format(None, None) == "table" and choose_hit_format("chapters", Path("a.txt")) == "chapters"
    (tmp_path / "clips.2026").mkdir()
    assert choose_hit_format("srt", tmp_path / "clips.2026") == "srt" and is_folder(tmp_path / "clips.2026", "srt")
    assert not is_folder(Path("a"), "otio") and not is_folder(Path("a.srt"), "srt") and is_folder(Path("a"), "edl")
    with pytest.raises(UsageError, match=r"a.mp4: ends in .mp4, expected .txt, .json"):
        choose_hit_format(None, Path("a.mp4"))
    with pytest.raises(UsageError, match="but the format is csv"):
        choose_hit_format("csv", Path("a.edl"))


def test_an_output_is_refused_before_a_search(tmp_path):
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(UsageError, match="a file, expected a folder"):
        refuse_output(path, "srt")
    with pytest.raises(UsageError, match="not an earlier output"):
        refuse_output(path, "csv")
    with pytest.raises(UsageError, match="reads that file"):
        refuse_output(path, "csv", inputs=[path], overwrite=True)
    with pytest.raises(UsageError, match="a folder, expected the name of a file"):
        refuse_output(tmp_path, "csv")
    refuse_output(None, "csv")
    refuse_output(tmp_path, "srt")
    refuse_output(path, "csv", overwrite=True)


def test_a_table_is_printed_with_what_is_below_on_request():
    printed: list[str] = []
    results = [SearchResult("a", (), result(Path("/v"), "a.mp4").hits, 2)]
    for show_below in (False, True):
        write_hits(results, output_format="table", out=None, print_text=printed.append, show_below=show_below, grey=str.upper)
    assert "a.mp4" not in printed[0] and "A.MP4" in printed[1]
