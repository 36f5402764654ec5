"""`costl search`: what it prints and writes, sentences one after the other, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from costl.commands import main

QUERY = "a large red circle"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def cache(world, tmp_path) -> Path:
    return world.copy(tmp_path).cache


def search(*arguments: str | Path, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, ["search", *map(str, arguments), "--device", "cpu"], input=typed)


def test_a_folder_is_indexed_and_searched(world, tmp_path):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    shutil.copy(next(world.videos.glob("test_0*.mp4")), tmp_path / "videos" / "deep" / "été; 1.mp4")
    (tmp_path / "videos" / "notes.mp4").write_text("text")
    options = ("--videos", tmp_path / "videos", "--weights", world.videos / "clip", "--min-score", "0")
    first = search(QUERY, *options)
    assert first.exit_code == 0 and "deep/été; 1.mp4" in first.stdout
    assert "cannot be searched: notes.mp4: not a video" in first.stderr and "1 indexed" in first.stderr
    second = search(QUERY, *options)
    assert second.stdout == first.stdout and "indexed" not in second.stderr
    removed = search("--videos", tmp_path / "videos", "--remove-index")
    assert removed.exit_code == 0 and not (tmp_path / "videos" / ".costl").exists()
    again = search("--videos", tmp_path / "videos", "--remove-index")
    assert again.exit_code == 2 and "nothing to remove" in again.stderr


def test_several_sentences_as_json(cache):
    result = search(QUERY, "the blue star", "--cache", cache, "--json", "--top", "2", "--min-score", "0")
    rows = json.loads(result.stdout)
    assert [row["query"] for row in rows] == [QUERY, "the blue star"]
    assert all(len(row["hits"]) == 2 for row in rows)


def test_lines_of_standard_input_are_sentences(cache):
    result = search("--cache", cache, "--format", "jsonl", typed=f"{QUERY}\n\n  the blue star \n")
    assert [json.loads(line)["query"] for line in result.stdout.splitlines()] == [QUERY, "the blue star"]


def test_sentences_are_asked_for_one_after_the_other(cache, monkeypatch):
    monkeypatch.setattr("costl.commands.search.is_terminal", lambda: True)
    result = search("--cache", cache, "--top", "1", typed=f"{QUERY}\nthe blue star\n\n")
    assert result.exit_code == 0
    assert [line.split(" · ")[0] for line in result.stdout.splitlines() if " · " in line] == [QUERY, "the blue star"]
    assert search("--cache", cache, typed=f"{QUERY}\n").exit_code == 0  # Ctrl-D


def test_without_all_moments_below_the_limit_are_not_shown(cache):
    nothing = search(QUERY, "--cache", cache, "--min-score", "1")
    assert "no match in 10 videos" in nothing.stdout and "below the threshold" not in nothing.stdout
    everything = search(QUERY, "--cache", cache, "--min-score", "1", "--all")
    assert "below the threshold" in everything.stdout


def test_files_are_written(cache, tmp_path):
    options = ("--cache", cache, "--min-score", "0", "--top", "2")
    result = search(QUERY, *options, "--out", tmp_path / "hits.csv", "--cut", tmp_path / "cut", "--picture", tmp_path / "p.png")
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "hits.csv").read_text().splitlines()) == 3
    assert len(list((tmp_path / "cut").glob("*.mp4"))) == 2
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 1000


def test_images_are_searched_for_after_the_sentences(cache, tmp_path, monkeypatch):
    """No sentence is asked for, also on a terminal."""
    for name, colour in (("red.png", "red"), ("blue.jpg", "blue")):
        Image.new("RGB", (64, 48), colour).save(tmp_path / name)
    images = ("--image", tmp_path / "red.png", "--image", tmp_path / "blue.jpg")
    options = ("--cache", cache, "--min-score", "0", "--top", "2")
    rows = json.loads(search(QUERY, *images, *options, "--json").stdout)
    assert [row["query"] for row in rows] == [QUERY, "red.png", "blue.jpg"]
    assert [{hit["query"] for hit in row["hits"]} for row in rows] == [{QUERY}, {"red.png"}, {"blue.jpg"}]
    monkeypatch.setattr("costl.commands.search.is_terminal", lambda: True)
    table = search(*images, *options)
    assert table.exit_code == 0 and [line.split(" · ")[0] for line in table.stdout.splitlines() if " · " in line] == [
        "red.png",
        "blue.jpg",
    ]


@pytest.mark.parametrize("output_format", ["csv", "edl", "otio", "srt", "vtt", "ffmetadata", "chapters"])
def test_every_format_names_the_image(cache, tmp_path, output_format):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    options = ("--cache", cache, "--min-score", "0", "--top", "1", "--format", output_format)
    result = search("--image", tmp_path / "red.png", *options)
    assert result.exit_code == 0 and "red.png" in result.stdout, result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([QUERY], 2, "name either a folder or a cache"),
        ([QUERY, "--videos", "v", "--cache", "c"], 2, "name either a folder or a cache"),
        ([QUERY, "--videos", "empty"], 2, "no videos in it"),
        ([QUERY, "--videos", "gone"], 2, "no such folder"),
        ([QUERY, "--cache", "gone.h5"], 3, "gone.h5"),
        (["  ", "--cache", "CACHE"], 2, "no letter or digit"),
        ([QUERY, "--cache", "CACHE", "--within", "x/"], 2, "none of 10 videos passes the filters"),
        ([QUERY, "--cache", "CACHE", "--top", "0"], 2, "top is 0"),
        ([QUERY, "--cache", "CACHE", "--min-score", "7"], 2, "min_score is 7.0"),
        ([QUERY, "--cache", "CACHE", "--longer-than", "-1"], 2, "longer_than_s is -1.0"),
        ([QUERY, "--cache", "CACHE", "--after", "yesterday"], 2, "'yesterday' does not match the format"),
        ([QUERY, "--cache", "CACHE", "--keep", "much"], 2, "'much': not a size"),
        ([QUERY, "--cache", "CACHE", "--run", "gone"], 2, "gone: no such folder"),
        ([QUERY, "--cache", "CACHE", "--out", "hits.doc"], 2, "ends in .doc"),
        ([QUERY, "--cache", "CACHE", "--out", "mine.csv"], 2, "not an earlier output"),
        ([QUERY, "--cache", "CACHE", "--picture", "p.jpg"], 2, "must end in .png"),
        (["--image", "gone.png", "--videos", "empty"], 2, "gone.png: no such file"),
        (["--image", "mine.csv", "--cache", "CACHE"], 2, "mine.csv: not a picture"),
        (["--image", "empty", "--cache", "CACHE"], 2, "empty: not a file"),
        (["--remove-index"], 2, "--remove-index needs the folder"),
    ],
    ids=lambda value: "".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_input_is_one_sentence(cache, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.csv").write_text("my own table")
    result = search(*[str(cache) if argument == "CACHE" else argument for argument in arguments])
    assert result.exit_code == code and message in result.stderr, result.output
    assert "Traceback" not in result.output and (tmp_path / "mine.csv").read_text() == "my own table"


def test_what_is_written_needs_a_sentence(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("costl.commands.search.is_terminal", lambda: True)
    result = search("--cache", cache, "--out", tmp_path / "hits.csv", typed=f"{QUERY}\n")
    assert result.exit_code == 2 and "needs a sentence" in result.stderr
