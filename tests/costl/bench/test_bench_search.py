"""The bench of a search makes a library that costl search answers about as a known one, and its lines are complete."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import costl.pipeline
from costl.bench import search
from costl.bench.search import bench_search
from costl.commands import main
from costl.pipeline.bench.measure import can_measure_memory
from costl.pipeline.errors import CostlError, UsageError

TINY = Path(costl.pipeline.__path__[0]) / "world" / "costl-tiny"


@pytest.fixture
def answers(monkeypatch) -> list[str]:
    """What each search prints. Everything runs in this process, and new processes that load the tower are left out."""
    printed: list[str] = []

    def run(library: search.Library, *arguments: str) -> None:
        assert arguments[-1] == "cpu"  # the device
        if arguments[:2] == ("-m", "costl"):
            result = CliRunner().invoke(main, arguments[2:], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            printed.append(result.output)

    make = search.make_library

    def make_here(*arguments: object) -> search.Library:
        library = make(*arguments)
        for name, value in search._environment(library).items():
            monkeypatch.setenv(name, value)
        return library

    monkeypatch.setattr(search, "make_library", make_here)
    monkeypatch.setattr(search, "in_new_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(search, "_run", run)
    return printed


def test_searches_of_a_known_library_are_measured_and_nothing_is_left(answers, tmp_path):
    lines = bench_search(hours=1, repeats=2, folder=tmp_path, weights=TINY, device="cpu")
    assert list(tmp_path.iterdir()) == []
    assert lines[0].startswith("| 1 hours, 1800 clips, 0.00 GB")
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert rows[-3:] == ["-" * len(rows[-3]), "import torch and load the text tower", "first answer of costl search"]
    assert any(line.startswith("The very first search") for line in lines)
    assert any(line.startswith("Memory beyond") for line in lines) == can_measure_memory()
    # Only the first one loads the whole encoder and compares ordinary sentences. None finds anything new.
    assert ["calibrate" in answer for answer in answers] == [True, False, False]
    assert all("20 videos" in answer and "indexed" not in answer and "changed" not in answer for answer in answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hours": 0.01}, "at least one video"),
        ({"hours": 1, "repeats": 0}, "at least one video"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_a_library_without_a_video_and_a_missing_device_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        bench_search(**options)


def test_a_process_that_fails_is_reported_with_its_last_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: too large\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CostlError, match="ValueError: too large"):
        search._run(search.Library(tmp_path, tmp_path, tmp_path), "-c", "")
