"""Failures of a video, of the disk or by a second run: each ends in a row or an error message, and loses nothing."""

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
from adversarial_process import open_failing_video
from processes import (
    contents_of,
    finish,
    is_whole,
    json_summary,
    part_stamps,
    parts_of,
    run_command,
    run_in_process,
    start_command,
    wait_for,
    write_videos,
)

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.worker import DecodeSettings

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals and permissions")
FAILING_DECODER = Path(__file__).with_name("adversarial_process.py")
EXTRACT = ("extract", "--videos", "w", "--device", "cpu", "--workers", 2, "--json")
FAILURES = {
    "fails-stop": ("timeout", "the decoder hangs"),
    "fails-segfault": ("crashed", "was killed by SIGSEGV"),
    "fails-killed": ("crashed", "was killed by SIGKILL (out of memory?)"),
    "fails-memory": ("failed", "needs more memory than one decode process may take"),
    "fails-growing": ("changed", "was changed during this run"),
    "fails-replaced": ("changed", "was changed during this run"),
    "fails-deleted": ("failed", "fails-deleted.mp4: cannot be read (No such file or directory)"),
    "fails-huge": ("failed", "one frame of 4608 x 2592 takes 36 MB, at most 34 MB are reserved for it"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with four videos in `w`, and their finished cache."""
    workspace = tmp_path_factory.mktemp("finished")
    write_videos(workspace / "w", 4)
    code, _, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 0, err
    return workspace


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(finished, tmp_path / "workspace"))


def delete_cache(workspace: Path) -> None:
    (workspace / "feats.h5").unlink()
    shutil.rmtree(workspace / "feats.h5.parts")


def write_huge(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4608, 2592, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((2592, 4608, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.promise(2)
def test_each_failing_video_is_a_row_with_its_reason_and_the_rest_finish(workspace):
    truth = contents_of(workspace / "feats.h5")
    delete_cache(workspace)
    for name in FAILURES:
        shutil.copy(workspace / "w" / "train_0000.mp4", workspace / "w" / f"{name}.mp4")
    write_huge(workspace / "w" / "fails-huge.mp4")
    code, out, err = run_command(*EXTRACT, cwd=workspace, script=FAILING_DECODER)
    assert code == 1 and "Traceback" not in err, err
    rows = {row["name"]: row for row in json_summary(out)["failed"]}
    statuses = {name: status for name, (status, _) in FAILURES.items()}
    assert {name: row["status"] for name, row in rows.items()} == statuses
    for name, (_, reason) in FAILURES.items():
        assert reason in rows[name]["reason"] and name in err
    assert {part.name: part.read_bytes() for part in parts_of(workspace / "feats.h5")} == {
        name: data for name, data in truth.items() if not name.startswith(("feats", "fails")) and len(name) < 60
    }, "nothing is stored of a video that failed or changed"
    indexed = {row.name: row.status for row in CacheReader(workspace / "feats.h5").rows}
    assert {name: indexed[name] for name in FAILURES} == statuses


@pytest.mark.promise(4)
def test_a_changed_video_is_extracted_again_and_reported(workspace):
    before = part_stamps(workspace / "feats.h5")
    shutil.copy(workspace / "w" / "val_0000.mp4", workspace / "w" / "train_0000.mp4")
    code, out, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 0 and "1 videos changed since they were extracted: train_0000." in err, err
    assert json_summary(out)["changed"] == json_summary(out)["done"] == ["train_0000"]
    after = part_stamps(workspace / "feats.h5")
    assert {name for name in after if after[name] != before[name]} == {"train_0000"}
    code, out, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 0 and "changed" not in err and json_summary(out)["done"] == []


def test_a_removed_video_keeps_its_part_and_is_not_decoded_on_return(workspace):
    before = part_stamps(workspace / "feats.h5")
    for name in ("val_0000.mp4", "val.jsonl"):
        (workspace / "w" / name).rename(workspace / name)
    code, out, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 0 and json_summary(out)["dropped"] == ["val"] and "split val is not among these annotations" in err
    assert "val_0000" not in CacheReader(workspace / "feats.h5").video_ids
    assert part_stamps(workspace / "feats.h5") == before
    for name in ("val_0000.mp4", "val.jsonl"):
        (workspace / name).rename(workspace / "w" / name)
    code, out, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 0 and json_summary(out)["done"] == [] and "val_0000" in json_summary(out)["skipped"], err
    assert part_stamps(workspace / "feats.h5") == before


@pytest.mark.promise(3)
def test_twenty_failures_of_the_machine_in_a_row_stop_the_run(workspace, monkeypatch):
    monkeypatch.setitem(DecodeSettings.__init__.__kwdefaults__, "open_video", open_failing_video)
    before = part_stamps(workspace / "feats.h5")
    for number in range(25):
        (workspace / "w" / f"junk_{number:02}.mp4").write_text("not a video")  # no trouble with the machine
        shutil.copy(workspace / "w" / "train_0000.mp4", workspace / "w" / f"fails-disk{number:02}.mp4")
    code, _, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 1 and "20 videos in a row failed" in err and "Traceback" not in err
    assert "the machine or the folder, not the videos. Finished videos are kept" in err
    assert part_stamps(workspace / "feats.h5") == before and len(CacheReader(workspace / "feats.h5").video_ids) == 4
    # Videos that failed before do not count as a row of failures again: the same command continues past them.
    code, out, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 1 and "in a row" not in err and len(json_summary(out)["failed"]) == 50, err


def test_the_video_folder_may_disappear_during_a_run_and_come_back(workspace):
    truth = contents_of(workspace / "feats.h5")
    delete_cache(workspace)
    process = start_command(*EXTRACT, "--workers", 1, cwd=workspace)
    wait_for(lambda: parts_of(workspace / "feats.h5") or process.poll() is not None)
    (workspace / "w").rename(workspace / "away")
    code, _, err = finish(process)
    assert code in (0, 1) and "Traceback" not in err, err  # 0: the run ended before the folder was renamed
    assert parts_of(workspace / "feats.h5") and all(map(is_whole, parts_of(workspace / "feats.h5")))
    kept = part_stamps(workspace / "feats.h5")
    code, _, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 2 and "w: no such folder. Pass the folder that holds the videos." in err
    assert part_stamps(workspace / "feats.h5") == kept and CacheReader(workspace / "feats.h5").video_ids
    (workspace / "away").rename(workspace / "w")
    code, _, err = run_in_process(*EXTRACT, cwd=workspace)
    assert code == 0 and contents_of(workspace / "feats.h5") == truth, err


@pytest.mark.promise(5)
def test_a_second_run_on_a_cache_is_refused_and_changes_nothing(workspace, report_figure):
    truth = contents_of(workspace / "feats.h5")
    delete_cache(workspace)
    first = start_command(*EXTRACT, cwd=workspace)
    wait_for(lambda: (workspace / "feats.h5").exists())
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot finish in the meantime
    began = time.monotonic()
    code, _, err = run_command(*EXTRACT, cwd=workspace)
    seconds = time.monotonic() - began
    assert code == 3 and "another costl extract is writing here. Wait for it, or choose another --out" in err
    assert seconds < 30 and "load" not in err, "the refusal must come before CLIP is loaded"
    report_figure(f"a second extraction was refused after {seconds:.1f} s")
    os.kill(first.pid, signal.SIGCONT)
    code, _, err = finish(first)
    assert code == 0 and contents_of(workspace / "feats.h5") == truth, err


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A real file system of a few megabytes; skips the test if none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.promise(3)
def test_a_full_disk_stops_the_run_and_finished_videos_stay(workspace, tmp_path):
    with small_disk(tmp_path / "disk", "size=1700k") as disk:
        arguments = (*EXTRACT, "--out", disk / "feats.h5")
        code, out, err = run_command(*arguments, cwd=workspace)
        assert code == 3 and "Traceback" not in err and "Exception ignored" not in err, err
        assert "cannot be written (No space left on device)" in err and "MB are free there. Make room" in err
        assert all(map(is_whole, parts_of(disk / "feats.h5"))) and not list(disk.rglob("*.tmp"))
        kept = part_stamps(disk / "feats.h5")
        assert 1 <= len(kept) < 4
        remount(disk, "size=100m")
        code, out, err = run_in_process(*arguments, cwd=workspace)
        assert code == 0 and set(json_summary(out)["skipped"]) == set(kept), err


def test_a_read_only_folder_is_named_before_any_work(workspace, tmp_path):
    with small_disk(tmp_path / "disk", "size=100m") as disk:
        shutil.copy(workspace / "feats.h5", disk)
        shutil.copytree(workspace / "feats.h5.parts", disk / "feats.h5.parts")
        remount(disk, "ro")
        for out in (disk / "feats.h5", disk / "new.h5"):
            code, _, err = run_in_process(*EXTRACT, "--out", out, cwd=workspace)
            assert code == 3 and f"{out}.parts: cannot be written (Read-only file system)" in err
            assert "The disk cannot be written to: choose another folder." in err
        assert CacheReader(disk / "feats.h5").video_ids, "a read-only cache can still be read"
