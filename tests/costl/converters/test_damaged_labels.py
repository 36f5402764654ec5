"""Whatever stands in a file of labels, it is read, or refused in our own words."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_label_studio import ROWS, export
from test_layouts import LAYOUTS

from costl.converters.find_layout import find_labels
from costl.converters.rows import make_rows
from costl.converters.splits import split_rows
from costl.converters.video_folder import VideoFolder
from costl.pipeline.errors import UsageError

ODD = (None, True, -1, 0.5, 10**400, 1e300, "", "x", "\ud83d", [], ["x"], [[1]], {}, {"a": 1}, [None], "9" * 50)
JSON = {name: next(iter(files.items())) for name, (files, *_) in LAYOUTS.items() if next(iter(files)).endswith(("json", "jsonl"))}
JSON["a task of ours"] = ("a.json", json.dumps(export(ROWS[0])))


@pytest.fixture(scope="module")
def folder(videos) -> VideoFolder:
    return VideoFolder(videos)


def read(path: Path, folder: VideoFolder) -> bool:
    """Whether a file is read, by the steps of `prepare_labels` that look at its content."""
    try:
        labels = [label for file in find_labels(path) for label in file.read(folder).labels]
        split_rows(make_rows(labels, folder), share=0.1, seed=0)
    except UsageError as error:
        assert str(error) and len(str(error)) < 2500
        return False
    return True


def damaged(value: Any) -> Iterator[Any]:
    """The value with each of its parts replaced by each odd value, or left out."""

    def paths(part: Any, path: tuple = ()) -> Iterator[tuple]:
        yield path
        for key, inner in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            yield from paths(inner, (*path, key))

    for *keys, last in filter(None, paths(value)):
        for odd in (*ODD, ...):
            changed = copy.deepcopy(value)
            parent = changed
            for key in keys:
                parent = parent[key]
            if odd is ...:
                del parent[last]
            else:
                parent[last] = odd
            yield changed


@pytest.mark.parametrize("name", JSON)
def test_a_changed_part_of_json_is_read_or_refused(name, folder, tmp_path):
    file, text = JSON[name]
    path = tmp_path / file
    path.write_text(text)
    assert read(path, folder)
    outcomes = set()
    for value in damaged(json.loads(text)):
        path.write_text(json.dumps(value))
        outcomes.add(read(path, folder))
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.srt", "a.vtt"])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.sampled_from([b"\0", b"[", b"{}", b"[{}]"]))
def test_any_bytes_are_read_or_refused(name, content, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    read(path, folder)


@pytest.mark.parametrize("cell", ["", "x", "-1", "1e9", "1" * 5000, "1:1:1:1", "00:00:00;00", "99:99:99:99", "\0", "½", "١"])
@pytest.mark.parametrize("column", range(6))
def test_any_cell_of_a_table_is_read_or_refused(column, cell, folder, tmp_path):
    cells = ["holiday", "1", "2", "a", "train", "3"]
    cells[column] = cell
    for names in ("video,start,end,text,split,rating", "video,start_frame,end_frame,text,split,rating"):
        (tmp_path / "a.csv").write_text(f"{names}\n{','.join(cells)}\n", encoding="utf-8")
        read(tmp_path / "a.csv", folder)


@pytest.mark.parametrize("rate", [Fraction(1, 10**9), Fraction(1000)])
def test_any_frame_rate_is_one(rate, videos, tmp_path):
    (tmp_path / "a.csv").write_text("video,start_frame,end_frame,text\nholiday,1,2,a\n")
    read(tmp_path / "a.csv", VideoFolder(videos, frame_rate=rate))
