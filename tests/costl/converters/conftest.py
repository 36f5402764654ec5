"""Fixtures for the tests of own labels: three short videos, and `costl prepare PATH` as a command."""

from __future__ import annotations

from pathlib import Path

import pytest
from numbered_videos import frame_times, make_video

SECONDS = 30


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A folder with holiday.mp4, Garden.MKV and k.1.mp4, each of 30 seconds with 25 frames a second."""
    folder = tmp_path_factory.mktemp("own") / "Videos"
    folder.mkdir()
    for name in ("holiday.mp4", "Garden.mkv", "k.1.mp4"):
        make_video(folder / name, frame_times(25 * SECONDS, 25.0))
    return folder


@pytest.fixture
def convert(run_prepare, videos):
    """`costl prepare PATH -q --videos VIDEOS --out OUT ...`, without --videos if `folder` is None."""

    def run(source: Path, *more: object, out: str = "out", folder: Path | None = videos):
        return run_prepare(source, "-q", *(["--videos", folder] if folder else []), *more, out=out)

    return run


@pytest.fixture
def write(tmp_path):
    """Writes files into a folder `labels`, texts or bytes by name, and returns the folder, or the file if there is one."""

    def write_files(**files: str | bytes) -> Path:
        folder = tmp_path / "labels"
        folder.mkdir(exist_ok=True)
        paths = [folder / name for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return paths[0] if len(paths) == 1 else folder

    return write_files
