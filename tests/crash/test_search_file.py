"""A kill or a loss of power before any call that changes a search file: it is the old or the new one, and is completed.

The states that a crash leaves are recorded (see disk_recording.py). They include those while a file is made, appended to,
masked and written anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from disk_recording import Recording, without_repeats
from small_cache import small_contents, unit_vectors

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError
from costl.pipeline.library import vectors_update
from costl.pipeline.library.vectors import Vectors, open_vectors, verify_vectors
from costl.pipeline.library.vectors_update import update_vectors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs folders that can be forced to the disk")
# The clips of each video, before and after an update.
UPDATES = {
    "made": ({}, {"a": 3, "b": 2}),
    "appended to": ({"a": 3}, {"a": 3, "b": 2, "c": 1}),
    "masked": ({"a": 9, "b": 2}, {"a": 9}),
    "masked and appended to": ({"a": 9, "b": 2}, {"a": 9, "c": 4}),
    "written anew": ({"a": 3, "b": 4, "c": 1}, {"b": 4, "d": 2}),
}


def write_cache(path: Path, clips: dict[str, int]) -> CacheReader:
    with CacheWriter(path, small_contents(), {}) as writer:
        writer.write_index()
        for name, count in clips.items():
            rng = np.random.default_rng(ord(name))
            tokens = rng.normal(size=(count, 7, 8)).astype(np.float16)
            times_s = 2.0 * np.arange(count)
            joint = unit_vectors(rng, count, 4)
            writer.store(name, tokens=tokens, joint=joint, times_s=times_s, duration_s=2.0 * count, content_hash="")
    return CacheReader(path)


def contents_of(vectors: Vectors) -> dict[str, bytes]:
    return {name: vectors.of(index).tobytes() for index, name in enumerate(vectors.keys)}


def state_of(folder: Path) -> dict[str, bytes] | None:
    """The vectors of each video, every one of them checked; None where no search file can be opened."""
    try:
        vectors = open_vectors(folder)
    except CacheError:
        return None
    verify_vectors(folder)
    return contents_of(vectors)


@pytest.mark.promise(1)
@pytest.mark.parametrize("update", UPDATES)
def test_a_crash_at_any_write_leaves_the_old_or_the_new_file(tmp_path, monkeypatch, report_figure, update):
    monkeypatch.setattr(vectors_update, "_PUBLISH_EVERY_S", 0.0)
    before, after = (write_cache(tmp_path / f"{number}.h5", clips) for number, clips in enumerate(UPDATES[update]))
    folder = tmp_path / "recorded"
    folder.mkdir()
    old = contents_of(update_vectors(folder, before)) if UPDATES[update][0] else None
    with Recording(folder) as recording:
        new = contents_of(update_vectors(folder, after))
        recording.report("updated")
    partial = {frozenset((new | (old or {})).items())}
    assert len(recording.states) > 5
    seen = set()
    for number, state in enumerate(recording.states):
        copy = state.write(tmp_path / str(number))
        copy.mkdir(exist_ok=True)
        found = state_of(copy)
        if found is None:
            assert old is None and not state.reported, (state.crash, state.next_call)
        else:
            # A video is there with its own vectors, and no video is lost that was there before and is wanted.
            assert all(frozenset(found.items()) <= whole for whole in partial), (state.crash, state.next_call)
            assert set(old or {}) & set(new) <= set(found)
            assert found == new or not state.reported
            seen.add(frozenset(found))
        shutil.rmtree(copy)
    assert frozenset(new) in seen and (old is None or frozenset(old) in seen)
    kinds = without_repeats(recording.states)
    for number, state in enumerate(kinds):
        copy = state.write(tmp_path / f"completed {number}")
        copy.mkdir(exist_ok=True)
        assert contents_of(update_vectors(copy, after)) == new, (state.crash, state.next_call)
        assert len([*copy.glob("*vectors*")]) == 3, "a file is left over"
    report_figure(f"search file {update}: {recording.calls} calls, {len(recording.states)} states, {len(kinds)} completed")
