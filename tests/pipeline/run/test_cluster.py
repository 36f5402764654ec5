"""One cache from several machines: a real Dask cluster that loses a worker, and shares that are merged."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dask_cluster import Machines, wait_for_workers, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.pipeline.cache.merge import merge
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.progress import Progress
from costl.pipeline.run import cluster_client
from costl.pipeline.run.cluster_worker import TRIES, RunSpec, _at_work, inspect_worker, versions
from costl.pipeline.run.engine import FailuresInARow
from costl.pipeline.run.shards import Share, lines_with_ends, parse_share

NAMES = [f"v{number}" for number in range(6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a data folder, one of its videos broken, and the cache that one machine makes of it."""
    home = tmp_path_factory.mktemp("whole")
    folder = home / "world"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        make_video(folder / f"{name}.mp4", frame_times(25 + 10 * number))
    (folder / "broken.mp4").write_text("not a video")
    rows = [(f"a dog number {n}", NAMES[n % len(NAMES)]) for n in range(20)]
    write_rows(folder / "train.jsonl", [*rows, ("a dog", "gone")])
    # Without a line end at the end, and with a blank line in the middle.
    text = "\n\n".join(lines_text([("a cat", "v1"), ("a dog number 3", "v4")]))
    (folder / "test.jsonl").write_text(text, encoding="utf-8")
    write_clip_weights(folder / "clip")
    (folder / "costl.yaml").write_text("extract:\n  weights: clip\n  fps: 4\ntrain:\n  epochs: 7\n", encoding="utf-8")
    run(home)
    return home


@pytest.fixture
def home(whole, tmp_path) -> Path:
    """A copy of the data folder without a cache."""
    shutil.copytree(whole / "world", tmp_path / "home" / "world")
    return tmp_path / "home"


def lines_text(rows: list[tuple[str, str]]) -> list[str]:
    return [json.dumps({"qid": n, "query": query, "vid": vid, "duration": 1.0}) for n, (query, vid) in enumerate(rows)]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines_text(rows)), encoding="utf-8")


def run(home: Path, **options: Any) -> Any:
    defaults = {"out": home / "feats.h5", "device": "cpu", "allow_missing_videos": True}
    defaults |= {} if "cluster" in options else {"workers": 1}
    return extract(home / "world", **(defaults | options))


def contents_of(cache: Path) -> dict[str, bytes]:
    files = [cache, *sorted(parts_folder(cache).rglob("*.h5"))]
    return {str(file.relative_to(cache.parent)): file.read_bytes() for file in files}


# A cluster


@pytest.fixture
def machines(tmp_path) -> Iterator[Machines]:
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the extra `cluster`")
    machines = Machines(tmp_path / "dask.log")
    yield machines
    machines.close()


def test_a_cluster_that_loses_a_worker_gives_the_bytes_of_one_machine(whole, home, machines):
    killed = machines.worker()
    machines.worker()
    wait_for_workers(machines.address, 2)
    reported: list[Progress] = []

    def kill_one(progress: Progress) -> None:
        reported.append(progress)
        if progress.stage == "videos" and progress.done == 1:
            # One of the two works on a video now, or will in a moment.
            wait_until(lambda: list(parts_folder(home / "feats.h5").glob(".run-*/v*.0")))
            killed.send_signal(signal.SIGKILL)

    report = run(home, cluster=machines.address, progress=kill_one)
    assert killed.wait() == -signal.SIGKILL
    assert sorted(report.done) == NAMES
    assert sorted((row.name, row.status) for row in report.failed) == [("broken", "failed"), ("gone", "missing")]
    assert contents_of(home / "feats.h5") == contents_of(whole / "feats.h5")
    assert {"load", "words", "workers", "videos"} <= {progress.stage for progress in reported}
    assert not [path.name for path in parts_folder(home / "feats.h5").iterdir() if path.name.startswith((".run", ".v"))]
    again = run(home, cluster=machines.address)
    assert again.done == () and sorted(again.skipped) == NAMES


def test_missing_workers_and_workers_without_processes_are_refused(home, machines):
    with pytest.raises(UsageError, match=r"has no workers. Start some: .*dask worker tcp://"):
        run(home, cluster=machines.address)
    machines.worker("--nanny")
    wait_for_workers(machines.address, 1)
    with pytest.raises(UsageError, match=r"worker tcp://\S+ may not start processes.*DAEMON=False"):
        run(home, cluster=machines.address)
    assert not (home / "feats.h5").exists()


def test_an_address_without_a_scheduler_is_refused_at_once(home, monkeypatch):
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the extra `cluster`")
    monkeypatch.setattr(cluster_client, "_CONNECT_S", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense://x:1"):
        with pytest.raises(UsageError, match=f"{address}: no Dask scheduler answers there"):
            run(home, cluster=address)
    with pytest.raises(UsageError, match="--workers is for one machine"):
        run(home, cluster="tcp://127.0.0.1:1", workers=2)


def test_the_error_for_a_missing_package_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'costl\[cluster\]'"):
        run(home, cluster="tcp://127.0.0.1:1")


def test_workers_with_other_versions_are_refused():
    here = versions()
    assert {"CoSTL's code", "torch", "h5py"} <= here.keys()
    assert inspect_worker("cpu", here) == "cpu"
    with pytest.raises(UsageError, match=r"has other versions \(torch: here 1\.0, there "):
        inspect_worker("cpu", here | {"torch": "1.0"})


# A single worker, without a cluster


@pytest.fixture
def spec(home) -> RunSpec:
    encoder = load_encoder(weights=str(home / "world" / "clip"))
    folder = parts_folder(home / "feats.h5") / ".run-1"
    folder.mkdir(parents=True)
    return RunSpec(
        model="ViT-B-32",
        weights=str(home / "world" / "clip"),
        device="cpu",
        fingerprint=encoder.fingerprint() | {"fps": 4.0},
        frame_options=FrameOptions(),
        run_options=RunOptions(),
        out=home / "feats.h5",
        folder=folder,
    )


def on_worker(monkeypatch) -> Any:
    distributed = pytest.importorskip("distributed", reason="it comes with the extra `cluster`")
    monkeypatch.setattr(distributed, "get_worker", lambda: type("Worker", (), {"address": "tcp://me"})())
    return importlib.import_module("costl.pipeline.run.cluster_worker")


def test_a_video_on_which_three_workers_died_becomes_a_crashed_row(spec, home, monkeypatch):
    worker = on_worker(monkeypatch)
    video = worker.Video("v0", home / "world" / "v0.mp4")
    for number in range(TRIES):
        (spec.folder / f"v0.{number}").touch()
    row = worker.extract_one(spec, video)
    assert row.status == "crashed" and "v0.mp4: 3 workers died" in row.reason
    (spec.folder / "v0.0").unlink()
    assert worker.extract_one(spec, video).ok
    assert not list(spec.folder.iterdir()), "a finished video leaves no mark"


def test_a_part_whose_result_was_lost_is_not_extracted_again(spec, home, monkeypatch):
    worker = on_worker(monkeypatch)
    video = worker.Video("v0", home / "world" / "v0.mp4")
    row = worker.extract_one(spec, video)
    monkeypatch.setattr("costl.pipeline.run.engine.decode_videos", lambda *_, **__: pytest.fail("decoded"))
    assert worker.extract_one(spec, video) == row


def test_a_worker_with_another_encoder_or_storage_is_refused(spec, home, tmp_path, monkeypatch):
    worker = on_worker(monkeypatch)
    video = home / "world" / "v0.mp4"
    mark = worker.prepare_worker(spec, [(video, video.stat().st_size)])
    assert (spec.folder / mark).exists()
    with pytest.raises(UsageError, match=r"v0\.mp4: \d+ here, 1 bytes on the client\. .* that all workers share"):
        worker.prepare_worker(spec, [(video, 1)])
    with pytest.raises(UsageError, match=r"none\.mp4: no file here, 1 bytes on the client"):
        worker.prepare_worker(spec, [(tmp_path / "none.mp4", 1)])
    elsewhere = replace(spec, folder=tmp_path / "elsewhere" / ".run-1")
    with pytest.raises(UsageError, match=r"elsewhere: cannot be written .* must be on storage that all workers share"):
        worker.prepare_worker(elsewhere, [])
    other = replace(spec, fingerprint=dict(spec.fingerprint) | {"weights": "0" * 64})
    with pytest.raises(CacheError, match="weights: expected 000000000000…"):
        worker.prepare_worker(other, [])
    with pytest.raises(CacheError, match=r"worker tcp://me: this run needs another CLIP .*weights: expected"):
        worker.extract_one(other, worker.Video("v0", video))
    shutil.rmtree(spec.folder)
    with pytest.raises(CacheError, match=r"worker tcp://me: .*run is over"):
        worker.extract_one(spec, worker.Video("v0", video))


def test_a_thread_that_works_alone_is_the_only_one_at_work():
    at_work = []
    entries = []

    def stay(alone: bool) -> None:
        with _at_work(alone=alone):
            at_work.append(alone)
            entries.append((alone, len(at_work)))
            time.sleep(0.02)
            at_work.pop()

    threads = [threading.Thread(target=stay, args=(number % 3 == 0,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(entries) == 9 and all(count == 1 for alone, count in entries if alone)


@pytest.mark.parametrize("status", ["crashed", "timeout", "error"])
def test_failures_of_the_machine_in_a_row_stop_a_run_unless_they_are_known(status):
    failures = FailuresInARow({"known"})
    for number in range(19):
        failures.add(f"v{number}", status, "bad.")
        failures.add(f"w{number}", "failed", "not a video.")  # neither counts nor ends the row
    failures.add("known", status, "bad.")
    failures.check()
    failures.add("v19", status, "bad.")
    with pytest.raises(CostlError, match="20 videos in a row failed, the last one: bad"):
        failures.check()
    failures.add("v20", "ok", "")
    failures.check()


@pytest.mark.parametrize("status", ["failed", "changed", "missing"])
def test_failures_of_videos_never_stop_a_run(status):
    failures = FailuresInARow(frozenset())
    for number in range(100):
        failures.add(f"v{number}", status, "bad.")
    failures.check()


# Shares


def test_merged_shares_give_the_bytes_of_one_machine_in_any_order(whole, home):
    shares = [home / f"share-{number}.h5" for number in (1, 2, 3)]
    reports = [run(home, shard=f"{number}/3", out=out) for number, out in enumerate(shares, start=1)]
    assert sorted(name for report in reports for name in report.done) == NAMES
    assert sorted(row.name for report in reports for row in report.failed) == ["broken", "gone"]
    share = CacheReader(shares[0])
    lines = [line for split in share.splits for line in share.annotations(split).split("\n") if line]
    assert {json.loads(line)["vid"] for line in lines} <= {row.name for row in share.rows}
    partial = merge(home / "feats.h5", [shares[2], shares[0]])
    assert partial.notes == ("Not all shares are here: 2/3 can be joined later.",)
    report = merge(home / "feats.h5", shares[1:2])
    assert report.notes == () and report.exit_code == 1 and report.videos == len(NAMES)
    expected = contents_of(whole / "feats.h5")
    assert contents_of(home / "feats.h5") == expected
    assert os.stat(parts_folder(home / "feats.h5") / "v0.h5").st_nlink == 2, "linked"
    again = merge(home / "feats.h5", shares)
    assert again == report and contents_of(home / "feats.h5") == expected
    everything = run(home)
    assert everything.done == () and contents_of(home / "feats.h5") == expected
    with pytest.raises(CacheError, match=r"share-1\.h5 holds \d+ videos that are not of share 2/3.*costl cache merge"):
        run(home, shard="2/3", out=shares[0])


def test_without_annotations_a_cluster_and_shares_give_the_same_bytes(home, machines):
    for file in (home / "world").glob("*.jsonl"):
        file.unlink()
    run(home)
    expected = contents_of(home / "feats.h5")
    shutil.rmtree(parts_folder(home / "feats.h5"))
    (home / "feats.h5").rename(home / "one.h5")
    machines.worker()
    wait_for_workers(machines.address, 1)
    assert sorted(run(home, cluster=machines.address).done) == NAMES
    assert contents_of(home / "feats.h5") == expected
    (home / "feats.h5").unlink()
    shutil.rmtree(parts_folder(home / "feats.h5"))
    shares = [home / f"share-{number}.h5" for number in (1, 2, 3)]
    for number, out in enumerate(shares, start=1):
        run(home, shard=f"{number}/3", out=out)
    partial = merge(home / "feats.h5", shares[:2])
    assert partial.notes == ("Not all shares are here: 3/3 can be joined later.",)
    assert merge(home / "feats.h5", shares[2:]).videos == len(NAMES)
    assert contents_of(home / "feats.h5") == expected


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A copy of the finished folder, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def test_where_links_are_not_possible_parts_are_copied_and_verified(copied, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(copied / "b.h5", [copied / "feats.h5"])
    assert os.stat(parts_folder(copied / "b.h5") / "v3.h5").st_nlink == 1, "copied"
    assert contents_of(copied / "b.h5")["b.h5"] == (copied / "feats.h5").read_bytes()
    part = parts_folder(copied / "feats.h5") / "v3.h5"
    part.write_bytes(flipped(part.read_bytes()))
    with pytest.raises(CacheError, match=r"v3\.h5: damaged, its copy has another checksum"):
        merge(copied / "c.h5", [copied / "feats.h5"])
    assert not (copied / "c.h5").exists() and not list(parts_folder(copied / "c.h5").glob(".*.tmp"))


def flipped(content: bytes) -> bytes:
    """`content` with one bit in the middle changed, which is part of a token."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_caches_that_differ_are_not_merged(home, copied):
    (home / "world" / "broken.mp4").unlink()
    run(home, fps=2.0, out=home / "other.h5")
    with pytest.raises(CacheError, match=r"fps: \S*feats\.h5 has 4\.0, \S*other\.h5 has 2\.0"):
        merge(home / "all.h5", [copied / "feats.h5", home / "other.h5"])
    with pytest.raises(UsageError, match="name the cache to write and the caches to join"):
        merge(copied / "feats.h5", [copied / "feats.h5"])
    assert not (home / "all.h5").exists()


def test_merge_prefers_features_to_failures_and_refuses_conflicts(copied, home):
    make_video(home / "world" / "broken.mp4", frame_times(30))
    run(home, out=home / "b.h5")
    report = merge(home / "all.h5", [copied / "feats.h5", home / "b.h5"])
    assert [row.name for row in report.failed] == ["gone"]
    assert CacheReader(home / "all.h5").annotations("train") == (home / "world" / "train.jsonl").read_text()
    make_video(home / "world" / "v2.mp4", frame_times(30))
    run(home, out=home / "b.h5")
    with pytest.raises(CacheError, match=r"1 videos have different features in two caches: v2 \("):
        merge(home / "more.h5", [copied / "feats.h5", home / "b.h5"])


def test_annotations_of_unrelated_caches_are_joined(home):
    folder = home / "world"
    rows = [("a dog", "v0"), ("a cat", "v1")]
    (folder / "test.jsonl").unlink()
    for out, annotated in (("a.h5", rows[:1]), ("b.h5", rows)):
        write_rows(folder / "train.jsonl", annotated)
        run(home, out=home / out)
    merge(home / "all.h5", [home / "a.h5", home / "b.h5"])
    reader = CacheReader(home / "all.h5")
    assert reader.annotations("train") == "".join(f"{line}\n" for line in lines_text(rows))
    assert reader.words("a cat").texts
    write_rows(folder / "train.jsonl", [("a bird", "v0")])
    run(home, out=home / "b.h5")
    with pytest.raises(CacheError, match=r"1 qids of train\.jsonl belong to different rows of two caches: 0\."):
        merge(home / "more.h5", [home / "a.h5", home / "b.h5"])


def test_a_killed_merge_can_be_repeated(copied, monkeypatch):
    adopt_row = CacheWriter.adopt_row

    def die(self, row):
        if row.name == "v3":
            raise KeyboardInterrupt
        return adopt_row(self, row)

    monkeypatch.setattr(CacheWriter, "adopt_row", die)
    with pytest.raises(KeyboardInterrupt):
        merge(copied / "b.h5", [copied / "feats.h5"])
    assert not (copied / "b.h5").exists(), "an incomplete cache must not have the final name"
    monkeypatch.undo()
    merge(copied / "b.h5", [copied / "feats.h5"])
    assert CacheReader(copied / "b.h5").rows == CacheReader(copied / "feats.h5").rows


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True), st.text(min_size=1), st.integers(1, 9))
def test_each_video_belongs_to_one_share_whatever_else_is_there(names, late, of):
    shares = [Share(number, of) for number in range(1, of + 1)]
    encoded = [name.encode("utf-8", "replace").decode() for name in [*names, late]]
    for name in encoded:
        assert sum(share.holds(name) for share in shares) == 1
    before = [[name for name in encoded[:-1] if share.holds(name)] for share in shares]
    after = [[name for name in encoded if share.holds(name)] for share in shares]
    assert [[name for name in mine if name != encoded[-1]] for mine in after] == [
        [name for name in mine if name != encoded[-1]] for mine in before
    ]


def test_shares_are_even_and_their_assignment_is_fixed():
    sizes = [sum(Share(number, 4).holds(f"video_{n}") for n in range(10_000)) for number in range(1, 5)]
    assert all(2300 < size < 2700 for size in sizes)
    # `printf %s v0 | sha256sum` begins with 0270da4daac514f3, and so on for v1, v2, v3.
    begins = [0x0270DA4DAAC514F3, 0x3BFC269594EF6492, 0xFB04DCB6970E4C3D, 0xE0D2747B9AB7ABB6]
    for number, begin in enumerate(begins):
        assert Share(begin % 3 + 1, 3).holds(f"v{number}")


row_lines = st.builds(
    lambda vid, pad: json.dumps({"qid": 1, "vid": vid}) + pad, st.text(min_size=1), st.sampled_from(["", " ", "\r"])
)


@settings(deadline=None)
@given(st.lists(st.one_of(row_lines, st.sampled_from(["", "  "]))), st.integers(1, 5))
def test_the_lines_of_all_shares_are_the_file(lines, of):
    text = "\n".join(lines)
    assert "".join(lines_with_ends(text)) == text
    by_number: dict[int, str] = {}
    for number in range(1, of + 1):
        selected, fields = Share(number, of).select_annotations({"train": text})
        numbers = fields["places"]["train"]
        assert fields["shares"] == [number] and not by_number.keys() & set(numbers)
        by_number |= zip(numbers, lines_with_ends(selected["train"]), strict=True)
    assert "".join(by_number[number] for number in sorted(by_number)) == text


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/4", ""])
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(UsageError, match="expected I/N, such as 1/4"):
        parse_share(text)
