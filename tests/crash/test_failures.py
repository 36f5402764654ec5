"""Through the command: whatever a video, a disk or a second run does ends in a row or a sentence, and loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from processes import contents_of, finish, here, is_whole, parts_of, run, start, told, wait_for, write_videos, written

from costl.pipeline.cache.reader import CacheReader

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals and permissions")
TRICKY = Path(__file__).with_name("tricky.py")
EXTRACT = ("extract", "--videos", "w", "--device", "cpu", "--workers", 2, "--json")
ENDS = {
    "odd-stop": ("timeout", "the decoder hangs"),
    "odd-segfault": ("crashed", "was killed by SIGSEGV"),
    "odd-killed": ("crashed", "was killed by SIGKILL (out of memory?)"),
    "odd-greedy": ("failed", "needs more memory than one decode process may take"),
    "odd-growing": ("changed", "was changed while this run was at work"),
    "odd-replaced": ("changed", "was changed while this run was at work"),
    "odd-gone": ("failed", "odd-gone.mp4: cannot be read (No such file or directory)"),
    "odd-huge": ("failed", "one frame of 4608 x 2592 takes 36 MB, at most 34 MB are kept for it"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A folder of four videos, `w`, and its cache."""
    home = tmp_path_factory.mktemp("plain")
    write_videos(home / "w", 4)
    code, _, err = here(*EXTRACT, cwd=home)
    assert code == 0, err
    return home


@pytest.fixture
def home(plain, tmp_path) -> Path:
    """The same to be changed."""
    return Path(shutil.copytree(plain, tmp_path / "home"))


def forget(home: Path) -> None:
    (home / "feats.h5").unlink()
    shutil.rmtree(home / "feats.h5.parts")


def write_huge(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4608, 2592, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((2592, 4608, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.promise(2)
def test_every_way_in_which_a_video_can_fail_is_a_row_with_its_reason_and_the_others_are_finished(home):
    truth = contents_of(home / "feats.h5")
    forget(home)
    for name in ENDS:
        shutil.copy(home / "w" / "train_0000.mp4", home / "w" / f"{name}.mp4")
    write_huge(home / "w" / "odd-huge.mp4")
    code, out, err = run(*EXTRACT, cwd=home, script=TRICKY)
    assert code == 1 and "Traceback" not in err, err
    rows = {row["name"]: row for row in told(out)["failed"]}
    assert {name: row["status"] for name, row in rows.items()} == {name: status for name, (status, _) in ENDS.items()}
    for name, (_, reason) in ENDS.items():
        assert reason in rows[name]["reason"] and name in err
    assert {part.name: part.read_bytes() for part in parts_of(home / "feats.h5")} == {
        name: data for name, data in truth.items() if not name.startswith(("feats", "odd")) and len(name) < 60
    }, "of a video that failed or changed nothing is stored"
    indexed = {row.name: row.status for row in CacheReader(home / "feats.h5").rows}
    assert {name: indexed[name] for name in ENDS} == {name: status for name, (status, _) in ENDS.items()}


@pytest.mark.promise(4)
def test_a_video_that_changed_since_it_was_extracted_is_extracted_again_and_said_so(home):
    before = written(home / "feats.h5")
    shutil.copy(home / "w" / "val_0000.mp4", home / "w" / "train_0000.mp4")
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 0 and "1 videos changed since they were extracted: train_0000." in err, err
    assert told(out)["changed"] == told(out)["done"] == ["train_0000"]
    after = written(home / "feats.h5")
    assert {name for name in after if after[name] != before[name]} == {"train_0000"}
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 0 and "changed" not in err and told(out)["done"] == []


def test_a_video_that_went_away_leaves_the_index_keeps_its_part_and_comes_back_undecoded(home):
    there = written(home / "feats.h5")
    for name in ("val_0000.mp4", "val.jsonl"):
        (home / "w" / name).rename(home / name)
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 0 and told(out)["dropped"] == ["val"] and "split val is not among these annotations" in err
    assert "val_0000" not in CacheReader(home / "feats.h5").video_ids and written(home / "feats.h5") == there
    for name in ("val_0000.mp4", "val.jsonl"):
        (home / name).rename(home / "w" / name)
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 0 and told(out)["done"] == [] and "val_0000" in told(out)["skipped"], err
    assert written(home / "feats.h5") == there


@pytest.mark.promise(3)
def test_twenty_failures_in_a_row_stop_the_run_with_what_was_finished_kept(home):
    before = written(home / "feats.h5")
    for number in range(25):
        (home / "w" / f"junk_{number:02}.mp4").write_text("not a video")
    code, _, err = here(*EXTRACT, cwd=home)
    assert code == 1 and "20 videos in a row failed" in err and "Traceback" not in err
    assert "the machine or the folder, not the videos; what was finished is kept" in err
    assert written(home / "feats.h5") == before and len(CacheReader(home / "feats.h5").video_ids) == 4
    # Those that failed before say nothing of the machine any more: the same command gets past them.
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 1 and "in a row" not in err and len(told(out)["failed"]) == 25, err


def test_the_folder_of_the_videos_may_go_away_halfway_and_come_back(home):
    truth = contents_of(home / "feats.h5")
    forget(home)
    process = start(*EXTRACT, "--workers", 1, cwd=home)
    wait_for(lambda: parts_of(home / "feats.h5") or process.poll() is not None)
    (home / "w").rename(home / "away")
    code, _, err = finish(process)
    assert code in (0, 1) and "Traceback" not in err, err  # 0: it was faster than we
    assert parts_of(home / "feats.h5") and all(map(is_whole, parts_of(home / "feats.h5")))
    kept = written(home / "feats.h5")
    code, _, err = here(*EXTRACT, cwd=home)
    assert code == 2 and "w: no such folder. Pass the folder that holds the videos." in err
    assert written(home / "feats.h5") == kept and CacheReader(home / "feats.h5").video_ids
    (home / "away").rename(home / "w")
    code, _, err = here(*EXTRACT, cwd=home)
    assert code == 0 and contents_of(home / "feats.h5") == truth, err


@pytest.mark.promise(5)
def test_a_second_run_on_one_cache_is_refused_while_the_first_is_alive_and_hurts_nothing(home, tell):
    truth = contents_of(home / "feats.h5")
    forget(home)
    first = start(*EXTRACT, cwd=home)
    wait_for(lambda: (home / "feats.h5").exists())
    os.kill(first.pid, signal.SIGSTOP)  # it cannot finish meanwhile
    began = time.monotonic()
    code, _, err = run(*EXTRACT, cwd=home)
    seconds = time.monotonic() - began
    assert code == 3 and "another costl extract is writing here. Wait for it, or choose another --out" in err
    assert seconds < 30 and "load" not in err, "before CLIP is loaded"
    tell(f"a second extraction was refused after {seconds:.1f} s")
    os.kill(first.pid, signal.SIGCONT)
    code, _, err = finish(first)
    assert code == 0 and contents_of(home / "feats.h5") == truth, err


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A real disk of some megabytes; skips where none can be mounted."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder], capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.promise(3)
def test_a_disk_that_is_full_stops_the_run_and_what_is_finished_stays(home, tmp_path):
    with small_disk(tmp_path / "disk", "size=1700k") as disk:
        arguments = (*EXTRACT, "--out", disk / "feats.h5")
        code, out, err = run(*arguments, cwd=home)
        assert code == 3 and "Traceback" not in err and "Exception ignored" not in err, err
        assert "cannot be written (No space left on device)" in err and "MB are free there. Make room" in err
        assert all(map(is_whole, parts_of(disk / "feats.h5"))) and not list(disk.rglob("*.tmp"))
        kept = written(disk / "feats.h5")
        assert 1 <= len(kept) < 4
        remount(disk, "size=100m")
        code, out, err = here(*arguments, cwd=home)
        assert code == 0 and set(told(out)["skipped"]) == set(kept), err


def test_a_folder_that_may_not_be_written_is_named_before_any_work(home, tmp_path):
    with small_disk(tmp_path / "disk", "size=100m") as disk:
        shutil.copy(home / "feats.h5", disk)
        shutil.copytree(home / "feats.h5.parts", disk / "feats.h5.parts")
        remount(disk, "ro")
        for out in (disk / "feats.h5", disk / "new.h5"):
            code, _, err = here(*EXTRACT, "--out", out, cwd=home)
            assert code == 3 and f"{out}.parts: cannot be written (Read-only file system)" in err
            assert "Change its permissions, or choose another place for the cache." in err
        assert CacheReader(disk / "feats.h5").video_ids, "it can be read all the same"
