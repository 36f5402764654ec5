"""Many machines, one cache: a real Dask cluster that loses a worker, and shares that are merged."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import videos as clips
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clip import write_clip

from costl.pipeline.cache.merge import merge
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.clip import load_clip
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.options import Effort, Form, How
from costl.pipeline.progress import Progress
from costl.pipeline.run import cluster as module
from costl.pipeline.run.cluster_worker import TRIES, Order, _Room, versions
from costl.pipeline.run.shards import Share, lines_of, parse_share

ROOT = Path(__file__).parents[3]
NAMES = [f"v{number}" for number in range(6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A home with a data folder, one of its videos broken, and what one machine makes of it."""
    home = tmp_path_factory.mktemp("whole")
    folder = home / "world"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        clips.make_clip(folder / f"{name}.mp4", clips.steady(25 + 10 * number))
    (folder / "broken.mp4").write_text("not a video")
    rows = [(f"a dog number {n}", NAMES[n % len(NAMES)]) for n in range(20)]
    write_rows(folder / "train.jsonl", [*rows, ("a dog", "gone")])
    # No line end at the end, and a blank line in the middle.
    text = "\n\n".join(lines_text([("a cat", "v1"), ("a dog number 3", "v4")]))
    (folder / "test.jsonl").write_text(text, encoding="utf-8")
    write_clip(folder / "clip")
    (folder / "costl.yaml").write_text("extract:\n  weights: clip\n  fps: 4\ntrain:\n  epochs: 7\n", encoding="utf-8")
    run(home)
    return home


@pytest.fixture
def home(whole, tmp_path) -> Path:
    """The data folder alone, to be extracted in another way."""
    shutil.copytree(whole / "world", tmp_path / "home" / "world")
    return tmp_path / "home"


def lines_text(rows: list[tuple[str, str]]) -> list[str]:
    return [json.dumps({"qid": n, "query": query, "vid": vid, "duration": 1.0}) for n, (query, vid) in enumerate(rows)]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines_text(rows)), encoding="utf-8")


def run(home: Path, **options: Any) -> Any:
    given = {"out": home / "feats.h5", "device": "cpu", "allow_missing_videos": True}
    given |= {} if "cluster" in options else {"workers": 1}
    return extract(home / "world", **(given | options))


def contents_of(cache: Path) -> dict[str, bytes]:
    files = [cache, *sorted(parts_folder(cache).rglob("*.h5"))]
    return {str(file.relative_to(cache.parent)): file.read_bytes() for file in files}


# A cluster


class Machines:
    """A scheduler and workers in processes of their own, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, log: Path):
        self._log = log.open("w")
        self._place = log.with_suffix(".json")
        self._running = [
            self._start("scheduler", "--scheduler-file", str(self._place), "--host", "127.0.0.1", "--port", "0")
        ]
        until(lambda: self._place.exists() and self._place.read_text().endswith("}"))
        self.address = json.loads(self._place.read_text())["address"]

    def worker(self, *options: str, **environment: str) -> subprocess.Popen:
        started = self._start("worker", self.address, "--nthreads", "1", *(options or ("--no-nanny",)), **environment)
        self._running.append(started)
        return started

    def close(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()
        self._log.close()

    def _start(self, kind: str, *arguments: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "distributed.cli.dask_" + kind, *arguments, "--no-dashboard"]
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        where = os.environ | {"PYTHONPATH": path} | environment
        return subprocess.Popen(command, stdout=self._log, stderr=self._log, env=where)


def until(true: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def machines(tmp_path) -> Iterator[Machines]:
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the extra `cluster`")
    found = Machines(tmp_path / "dask.log")
    yield found
    found.close()


def connected(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=60)


def test_a_cluster_that_loses_a_worker_makes_the_bytes_of_one_machine(whole, home, machines):
    doomed = machines.worker()
    machines.worker()
    connected(machines.address, 2)
    told: list[Progress] = []

    def kill_one(progress: Progress) -> None:
        told.append(progress)
        if progress.stage == "videos" and progress.done == 1:
            # One of the two is at work on a video now, or will be in a moment.
            until(lambda: list(parts_folder(home / "feats.h5").glob(".run-*/v*.0")))
            doomed.send_signal(signal.SIGKILL)

    report = run(home, cluster=machines.address, progress=kill_one)
    assert doomed.wait() == -signal.SIGKILL
    assert sorted(report.done) == NAMES
    assert sorted((row.name, row.status) for row in report.failed) == [("broken", "failed"), ("gone", "missing")]
    assert contents_of(home / "feats.h5") == contents_of(whole / "feats.h5")
    assert {"load", "words", "workers", "videos"} <= {progress.stage for progress in told}
    assert not [path.name for path in parts_folder(home / "feats.h5").iterdir() if path.name.startswith((".run", ".v"))]
    again = run(home, cluster=machines.address)
    assert again.done == () and sorted(again.skipped) == NAMES


def test_a_worker_that_may_not_start_processes_or_none_at_all_is_named(home, machines):
    with pytest.raises(UsageError, match=r"has no workers. Start some: .*dask worker tcp://"):
        run(home, cluster=machines.address)
    machines.worker("--nanny")
    connected(machines.address, 1)
    with pytest.raises(UsageError, match=r"worker tcp://\S+ may not start processes.*DAEMON=False"):
        run(home, cluster=machines.address)
    assert not (home / "feats.h5").exists()


def test_nobody_at_the_address_and_what_is_not_one_are_said_at_once(home, monkeypatch):
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the extra `cluster`")
    monkeypatch.setattr(module, "_CONNECT_S", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense://x:1"):
        with pytest.raises(UsageError, match=f"{address}: no Dask scheduler answers there"):
            run(home, cluster=address)
    with pytest.raises(UsageError, match="--workers is for one machine"):
        run(home, cluster="tcp://127.0.0.1:1", workers=2)


def test_without_the_package_the_error_says_how_to_get_it(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'costl\[cluster\]'"):
        run(home, cluster="tcp://127.0.0.1:1")


def test_other_versions_are_named():
    here = versions()
    assert {"CoSTL's code", "torch", "h5py"} <= here.keys()
    with pytest.raises(UsageError, match=r"worker w has other versions \(torch: here .*, there 1\.0\)"):
        module._refuse_versions("w", here | {"torch": "1.0"}, here)


# One worker, without a cluster


@pytest.fixture
def order(home) -> Order:
    clip = load_clip(weights=str(home / "world" / "clip"))
    folder = parts_folder(home / "feats.h5") / ".run-1"
    folder.mkdir(parents=True)
    fingerprint = clip.fingerprint() | {"fps": 4.0}
    return Order(
        "ViT-B-32", str(home / "world" / "clip"), "cpu", fingerprint, Form(), How(), Effort(), home / "feats.h5", folder
    )


def on_worker(monkeypatch) -> Any:
    distributed = pytest.importorskip("distributed", reason="it comes with the extra `cluster`")
    monkeypatch.setattr(distributed, "get_worker", lambda: type("Worker", (), {"address": "tcp://me"})())
    return importlib.import_module("costl.pipeline.run.cluster_worker")


def test_a_video_that_workers_died_of_becomes_a_row(order, home, monkeypatch):
    station = on_worker(monkeypatch)
    video = station.Video("v0", home / "world" / "v0.mp4")
    for number in range(TRIES):
        (order.folder / f"v0.{number}").touch()
    made = station.extract_one(order, video)
    assert (made.row.status, made.worker) == ("crashed", "tcp://me") and "v0.mp4: 3 workers died" in made.row.reason
    (order.folder / "v0.0").unlink()
    assert station.extract_one(order, video).row.ok
    assert not list(order.folder.iterdir()), "a video that ends leaves no mark"


def test_a_part_whose_answer_was_lost_is_not_made_again(order, home, monkeypatch):
    station = on_worker(monkeypatch)
    video = station.Video("v0", home / "world" / "v0.mp4")
    row = station.extract_one(order, video).row
    monkeypatch.setattr("costl.pipeline.run.engine.decode_videos", lambda *_, **__: pytest.fail("decoded"))
    assert station.extract_one(order, video).row == row


def test_a_worker_with_another_clip_or_other_storage_says_so(order, home, tmp_path, monkeypatch):
    station = on_worker(monkeypatch)
    video = home / "world" / "v0.mp4"
    assert station.make_ready(order, "worker-0", [(video, video.stat().st_size)]) == ""
    assert (order.folder / "worker-0").exists()
    assert "sees" in station.make_ready(order, "worker-0", [(video, 1)])
    assert "does not see it" in station.make_ready(order, "worker-0", [(tmp_path / "none.mp4", 1)])
    elsewhere = module.replace(order, folder=tmp_path / "elsewhere" / ".run-1")
    assert "must be on storage that all workers share" in station.make_ready(elsewhere, "worker-0", [])
    other = module.replace(order, fingerprint=dict(order.fingerprint) | {"weights": "0" * 64})
    assert station.make_ready(other, "worker-0", []).startswith("weights: asked for 000000000000…")
    with pytest.raises(CacheError, match="worker tcp://me: weights: asked for"):
        station.extract_one(other, station.Video("v0", video))
    shutil.rmtree(order.folder)
    with pytest.raises(CacheError, match=r"worker tcp://me: .*run is over"):
        station.extract_one(order, station.Video("v0", video))


def test_a_suspect_has_the_worker_to_itself():
    room, seen = _Room(), []

    def stay(alone: bool) -> None:
        with room.enter(alone=alone):
            seen.append((alone, room._inside))
            time.sleep(0.02)

    threads = [threading.Thread(target=stay, args=(number % 3 == 0,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 9 and all(inside == 1 for alone, inside in seen if alone)


def test_failures_in_a_row_stop_a_cluster_too():
    bad = [module.VideoRow(f"v{n}", "failed", f"v{n}", reason="bad.") for n in range(20)]
    module._stop_when_nothing_works(bad[:19])
    with pytest.raises(CostlError, match="20 videos in a row failed, the last one: bad"):
        module._stop_when_nothing_works(bad)


# Shares


def test_shares_become_the_bytes_of_one_machine_in_any_order_and_again(whole, home):
    shares = [home / f"share-{number}.h5" for number in (1, 2, 3)]
    reports = [run(home, shard=f"{number}/3", out=out) for number, out in enumerate(shares, start=1)]
    assert sorted(name for report in reports for name in report.done) == NAMES
    assert sorted(row.name for report in reports for row in report.failed) == ["broken", "gone"]
    one = CacheReader(shares[0])
    about = {json.loads(line)["vid"] for split in one.splits for line in one.annotations(split).split("\n") if line}
    assert about <= {row.name for row in one.rows}
    some = merge(home / "feats.h5", [shares[2], shares[0]])
    assert some.notes == ("Not all shares are here: 2/3 can be joined later.",)
    report = merge(home / "feats.h5", shares[1:2])
    assert report.notes == () and report.exit_code == 1 and report.videos == len(NAMES)
    expected = contents_of(whole / "feats.h5")
    assert contents_of(home / "feats.h5") == expected
    assert os.stat(parts_folder(home / "feats.h5") / "v0.h5").st_nlink == 2, "linked"
    again = merge(home / "feats.h5", shares)
    assert (again.linked, again.copied) == (0, 0) and contents_of(home / "feats.h5") == expected
    everything = run(home)
    assert everything.done == () and contents_of(home / "feats.h5") == expected
    with pytest.raises(CacheError, match=r"share-1\.h5 holds \d+ videos that are not of share 2/3.*costl cache merge"):
        run(home, shard="2/3", out=shares[0])


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """The finished home, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def test_where_links_are_not_possible_parts_are_copied_and_verified(copied, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    report = merge(copied / "b.h5", [copied / "feats.h5"])
    assert (report.linked, report.copied) == (0, len(NAMES))
    assert contents_of(copied / "b.h5")["b.h5"] == (copied / "feats.h5").read_bytes()
    part = parts_folder(copied / "feats.h5") / "v3.h5"
    part.write_bytes(flipped(part.read_bytes()))
    with pytest.raises(CacheError, match=r"v3\.h5: damaged, its copy has another checksum"):
        merge(copied / "c.h5", [copied / "feats.h5"])
    assert not (copied / "c.h5").exists() and not list(parts_folder(copied / "c.h5").glob(".*.tmp"))


def flipped(content: bytes) -> bytes:
    """Another bit in the middle, which is a token."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_what_differs_is_named_and_never_mixed(home, copied):
    (home / "world" / "broken.mp4").unlink()
    run(home, fps=2.0, out=home / "other.h5")
    with pytest.raises(CacheError, match=r"fps: \S*feats\.h5 has 4\.0, \S*other\.h5 has 2\.0"):
        merge(home / "all.h5", [copied / "feats.h5", home / "other.h5"])
    with pytest.raises(UsageError, match="name the cache to write and the caches to join"):
        merge(copied / "feats.h5", [copied / "feats.h5"])
    assert not (home / "all.h5").exists()


def test_features_win_over_a_failure_and_two_different_ones_are_refused(copied, home):
    clips.make_clip(home / "world" / "broken.mp4", clips.steady(30))
    run(home, out=home / "b.h5")
    report = merge(home / "all.h5", [copied / "feats.h5", home / "b.h5"])
    assert [row.name for row in report.failed] == ["gone"]
    assert CacheReader(home / "all.h5").annotations("train") == (home / "world" / "train.jsonl").read_text()
    clips.make_clip(home / "world" / "v2.mp4", clips.steady(30))
    run(home, out=home / "b.h5")
    with pytest.raises(CacheError, match=r"1 videos have different features in two caches: v2 \(.*: of another file\)"):
        merge(home / "more.h5", [copied / "feats.h5", home / "b.h5"])


def test_annotations_of_caches_that_were_never_one_are_joined_by_qid(home):
    folder, rows = home / "world", [("a dog", "v0"), ("a cat", "v1")]
    (folder / "test.jsonl").unlink()
    for out, some in (("a.h5", rows[:1]), ("b.h5", rows), ("c.h5", [("a cow", "v0")])):
        write_rows(folder / "train.jsonl", some)
        run(home, out=home / out)
    merge(home / "all.h5", [home / "a.h5", home / "b.h5"])
    reader = CacheReader(home / "all.h5")
    assert reader.annotations("train") == "".join(f"{line}\n" for line in lines_text(rows))
    assert reader.words("a cat").texts
    with pytest.raises(CacheError, match=r"train\.jsonl: qid 0 is one annotation in \S+a\.h5 and another in \S+c\.h5"):
        merge(home / "more.h5", [home / "a.h5", home / "c.h5"])


def test_a_killed_merge_goes_on(copied, monkeypatch):
    adopt = CacheWriter.adopt

    def die(self, row):
        if row.name == "v3":
            raise KeyboardInterrupt
        return adopt(self, row)

    monkeypatch.setattr(CacheWriter, "adopt", die)
    with pytest.raises(KeyboardInterrupt):
        merge(copied / "b.h5", [copied / "feats.h5"])
    assert not (copied / "b.h5").exists(), "nothing is called whole that is not"
    monkeypatch.undo()
    assert merge(copied / "b.h5", [copied / "feats.h5"]).linked == 2
    assert CacheReader(copied / "b.h5").rows == CacheReader(copied / "feats.h5").rows


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True), st.text(min_size=1), st.integers(1, 9))
def test_every_video_is_of_one_share_whatever_else_there_is(names, late, of):
    shares = [Share(number, of) for number in range(1, of + 1)]
    encoded = [name.encode("utf-8", "replace").decode() for name in [*names, late]]
    for name in encoded:
        assert sum(share.holds(name) for share in shares) == 1
    before = [[name for name in encoded[:-1] if share.holds(name)] for share in shares]
    after = [[name for name in encoded if share.holds(name)] for share in shares]
    assert [[name for name in mine if name != encoded[-1]] for mine in after] == [
        [name for name in mine if name != encoded[-1]] for mine in before
    ]


def test_shares_are_even_and_an_assignment_once_made_stays():
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
    assert "".join(lines_of(text)) == text
    placed: dict[int, str] = {}
    for number in range(1, of + 1):
        mine, share = Share(number, of).cut({"train": text})
        assert share["shares"] == [number] and not placed.keys() & set(share["places"]["train"])
        placed |= zip(share["places"]["train"], lines_of(mine["train"]), strict=True)
    assert "".join(placed[place] for place in sorted(placed)) == text


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/4", ""])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UsageError, match="expected I/N, such as 1/4"):
        parse_share(text)
