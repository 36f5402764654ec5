"""The sample world: the same settings give the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from costl.pipeline.errors import UsageError
from costl.pipeline.world.write_world import WorldSettings, write_sample

SMALL = WorldSettings(videos={"train": 2, "val": 1, "test": 1, "test_unseen": 2}, queries=3, clips=(12, 14), side=64)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_settings_give_the_same_bytes_with_any_processes(tmp_path):
    for name, processes in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, settings=SMALL, processes=processes)
    first = files(tmp_path / "a")
    assert len([name for name in first if name.endswith(".mp4")]) == 6
    assert first == files(tmp_path / "b") == files(tmp_path / "c")


@pytest.mark.parametrize(
    ("hard", "digest"),
    [
        (False, "555631673aed90ce8c66a1bfc6f4922a9d89b8ad1e37102196ad2d3acffdb909"),
        (True, "c6c420fa7ce102a2ee6f922e25afbc9444b76371d19654d079599b8a3020a468"),
    ],
)
def test_the_annotations_are_those_of_the_published_numbers(tmp_path, hard, digest):
    """These are digests of the world before it could be fine. If they change, all numbers in docs/ must be measured again."""
    write_sample(tmp_path / "a", settings=replace(SMALL, hard=hard), processes=1)
    annotations = b"".join(path.read_bytes() for path in sorted((tmp_path / "a").glob("*.jsonl")))
    assert hashlib.sha256(annotations).hexdigest() == digest


def test_an_interrupted_sample_is_completed_by_the_same_call(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "a", settings=SMALL, processes=1, progress=interrupt)
    write_sample(tmp_path / "a", settings=SMALL, processes=1)
    write_sample(tmp_path / "b", settings=SMALL, processes=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are not a sample world"):
        write_sample(tmp_path, settings=SMALL)
    assert files(tmp_path) == {"thesis.txt": b"mine"}


def test_a_relative_folder_lies_in_the_working_folder_of_each_call(tmp_path, monkeypatch):
    for name in ("first", "second"):  # the processes of the first call are used again
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_sample(Path("w"), settings=SMALL, processes=2)
    assert files(tmp_path / "first" / "w") == files(tmp_path / "second" / "w")
