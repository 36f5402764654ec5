"""What a message advises follows from the error number of the operating system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from small_cache import write_small_cache

from costl.pipeline.cache.hdf5 import write_error
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError, next_step
from costl.pipeline.formats.files import publish

ADVICE = {
    errno.ENOSPC: "ree",
    errno.EDQUOT: "free space",
    errno.EACCES: "permissions",
    errno.EPERM: "permissions",
    errno.EROFS: "another folder",
    errno.ENAMETOOLONG: "shorter name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "another name",
    errno.EFBIG: "file of this size",
    errno.EMFILE: "ulimit",
    errno.EIO: "fails",
    errno.ESTALE: "fails",
    errno.EBUSY: "another name or folder",
}
ABOUT_SPACE = {errno.ENOSPC, errno.EDQUOT}


@pytest.mark.parametrize(("number", "advice"), ADVICE.items(), ids=map(errno.errorcode.get, ADVICE))
def test_the_advice_follows_from_the_error_number(number, advice, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CostlError) as published:
        publish(tmp_path / "x", b"")
    for message in (str(published.value), str(write_error(tmp_path / "x", OSError(number, "")))):
        assert f"({os.strerror(number)}). " in message and advice in message
        assert ("ree space" in message or "MB are free" in message) == (number in ABOUT_SPACE)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 300, "File name too long). Choose a shorter name."),
        ("folder", "It is a folder: name a file."),
        ("file/x", "A file stands where a folder is needed"),
    ],
)
def test_names_that_a_disk_refuses(name, reason, tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(CostlError) as refusal:
        publish(tmp_path / name, b"")
    assert reason in str(refusal.value)


def test_a_cache_that_cannot_be_read_is_not_called_damaged_or_foreign(tmp_path, monkeypatch):
    cache = write_small_cache(tmp_path / "feats.h5")
    monkeypatch.setattr("builtins.open", no_permission)
    with pytest.raises(CacheError, match=r"cannot be read \(Permission denied\)\. Change its permissions"):
        CacheReader(cache)
    with pytest.raises(CacheError, match=r"cannot be read \(Permission denied\)|no such file|a folder"):
        CacheReader(tmp_path)


def no_permission(path: Path, *_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_an_error_without_a_number_gets_no_guess():
    assert next_step(OSError("something else")) == "Choose another name or folder."
