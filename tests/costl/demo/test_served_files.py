"""A file that goes while a page asks for it is not found; it is no error of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from costl.demo.served_files import ServedFiles, file_response


def test_a_file_keeps_its_key():
    files = ServedFiles()
    first, second = files.key(Path("a.mp4")), files.key(Path("b.mp4"))
    assert first != second and files.key(Path("a.mp4")) == first
    assert files.paths == {first: Path("a.mp4"), second: Path("b.mp4")}


def test_a_file_is_served_as_it_was_when_it_was_asked_for(tmp_path):
    pytest.importorskip("fastapi")
    (tmp_path / "a.mp4").write_bytes(b"abc")
    response = file_response(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").unlink()
    assert response.headers["content-length"] == "3" and response.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("name", ["gone.mp4", "", None])
def test_what_is_no_file_is_not_found(tmp_path, name):
    fastapi = pytest.importorskip("fastapi")
    with pytest.raises(fastapi.HTTPException) as caught:
        file_response(None if name is None else tmp_path / name)
    assert caught.value.status_code == 404
