"""A crash at every call by which files come to be, of the process and of the power: what was reported is whole afterwards,
what has its name is never half a file, and the same command again ends with the same bytes.

What a crash leaves is not waited for but recorded (see recording.py). The long variant completes the work from every
single state, where the short one takes one of each kind:

    python -m pytest tests/crash/test_replay.py -m long -n 0
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from disk_recording import Recording, State, without_repeats
from processes import contents_of, is_whole, lasting, parts_of
from test_disk_faults import VIDEOS, contents, fill, row, words

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.export import export
from costl.ask.output import write_told
from costl.evaluate import evaluate
from costl.pipeline import add_queries as additions
from costl.pipeline.cache.merge import merge
from costl.pipeline.cache.pack import pack, unpack
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.words import known_words
from costl.pipeline.progress import Progress
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import newest_run, read_rows, read_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs folders that can be forced to the disk")
EPOCHS = 2


@pytest.fixture
def count(tell):
    """Tells how many crash points were replayed."""

    def count(what: str, recording: Recording, completed: int) -> None:
        tell(f"{what}: {recording.boundaries} boundaries, {len(recording.states)} states, {completed} completed")

    return count


def test_the_recording_sees_what_is_not_forced_to_the_disk(tmp_path):
    """Of itself: three ways to write a file, two of which a loss of power betrays."""

    def careless(path: Path, *, sync: bool, sync_folder: bool) -> list[State]:
        (path / "old").write_bytes(b"before")
        with Recording(path) as recording:
            aside = path / ".aside"
            with aside.open("wb") as file:
                file.write(b"0123456789")
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            aside.replace(path / "named")
            if sync_folder:
                folder = os.open(path, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
            recording.say("named")
            os.stat(path)
        assert all(state.files["old"] == b"before" for state in recording.states)
        return recording.states

    def named(name: str, **how: bool) -> tuple[set[bytes], set[bytes | None]]:
        (tmp_path / name).mkdir()
        states = careless(tmp_path / name, **how)
        reported = {state.files.get("named") for state in states if state.said}
        return {state.files["named"] for state in states if "named" in state.files}, reported

    assert named("a", sync=True, sync_folder=True) == ({b"0123456789"}, {b"0123456789"})
    assert named("b", sync=False, sync_folder=True)[0] == {b"0123456789", b"01234"}
    assert None in named("c", sync=True, sync_folder=False)[1]


# The cache


def look_at_cache(folder: Path, said: Iterable[str]) -> None:
    """With h5py and a checksum first, then by our own reader."""
    cache = folder / "feats.h5"
    names = {part.stem for part in parts_of(cache)}
    assert names >= set(said) and all(map(is_whole, parts_of(cache)))
    if cache.exists():
        reader = CacheReader(cache)
        reader.verify_words()
        for name in reader.video_ids:
            reader.verify(name)


@pytest.mark.promise(1)
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_crash_at_any_write_of_an_extraction_loses_nothing_that_was_reported(tmp_path, count, every):
    class Said(list):
        def append(self, name: str) -> None:
            recording.say(name)

    (tmp_path / "now").mkdir()
    with Recording(tmp_path / "now") as recording:
        fill(tmp_path / "now" / "feats.h5", Said())
    truth = contents_of(tmp_path / "now" / "feats.h5")
    assert {state.said for state in recording.states} == {(), ("a",), ("a", "b")}
    kinds, completed = without_repeats(recording.states), 0
    for number, state in enumerate(recording.states):
        home = state.write(tmp_path / str(number))
        look_at_cache(home, state.said)
        if state in kinds or number % every == 0:
            completes_cache(home, state, truth)
            completed += 1
        shutil.rmtree(home)
    assert recording.boundaries > 40 and len(recording.states) > 50
    count("cache", recording, completed)


def completes_cache(home: Path, state: State, truth: dict[str, bytes]) -> None:
    """The same extraction again makes the rest, and only that."""
    made = written(home)
    fill(home / "feats.h5", [])
    assert contents_of(home / "feats.h5") == truth, (state.how, state.before)
    kept = {name: about for name, about in written(home).items() if name in state.said}
    assert kept.items() <= made.items(), "a finished video was made again"
    assert not list(home.rglob("*.tmp"))


def written(home: Path) -> dict[str, tuple[int, int]]:
    return {part.stem: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts_of(home / "feats.h5")}


class OtherWords:
    """In the place of CLIP: says that it is the one that made the cache."""

    def fingerprint(self) -> dict[str, str]:
        return dict(contents().fingerprint)

    def encode_text(self, queries: list[str]) -> list:
        return list(words(*queries).values())


@pytest.mark.promise(1)
def test_a_crash_at_any_write_leaves_the_old_index_or_the_new_one_when_words_are_added(tmp_path, monkeypatch, count):
    monkeypatch.setattr(additions, "load_clip", lambda *_, **__: OtherWords())
    home = tmp_path / "now"
    home.mkdir()
    fill(home / "feats.h5", [])
    (tmp_path / "more.jsonl").write_text(row("a bird", "b"), encoding="utf-8")
    old = without_history(contents_of(home / "feats.h5"))

    def add(folder: Path) -> dict[str, bytes]:
        additions.add_words(folder / "feats.h5", tmp_path / "more.jsonl", weights="here")
        return without_history(contents_of(folder / "feats.h5"))

    with Recording(home) as recording:
        new = add(home)
        recording.say("more")
    for number, state in enumerate(recording.states):
        folder = state.write(tmp_path / str(number))
        look_at_cache(folder, VIDEOS)
        reader = CacheReader(folder / "feats.h5")
        assert {"a dog", "a cat"} <= known_words(folder / "feats.h5").keys()
        assert ("more" in reader.splits) >= ("more" in state.said)
        assert reader.path.read_bytes() in (old["feats.h5"], new["feats.h5"])
        shutil.rmtree(folder)
    for number, state in enumerate(without_repeats(recording.states)):
        found = add(state.write(tmp_path / str(number)))
        assert {name for name in found | new if found.get(name) != new.get(name)} == set(), (state.how, state.before)
    count("words added", recording, len(without_repeats(recording.states)))


def without_history(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in found.items() if not name.endswith(".jsonl")}


@pytest.mark.promise(1)
def test_a_crash_at_any_write_of_packing_unpacking_and_merging_leaves_the_whole_or_what_is_completed(tmp_path, count):
    fill(tmp_path / "feats.h5", [])
    truth = contents_of(tmp_path / "feats.h5")
    pack(tmp_path / "feats.h5", out=tmp_path / "one.h5")
    packed = (tmp_path / "one.h5").read_bytes()

    def packing(folder: Path) -> bool:
        out = folder / "packed.h5"
        if not out.exists():  # it is never written over
            pack(tmp_path / "feats.h5", out=out)
        return out.read_bytes() == packed

    def unpacking(folder: Path) -> bool:
        if not (folder / "feats.h5").exists():
            unpack(tmp_path / "one.h5", out=folder / "feats.h5")
        return verify(folder / "feats.h5").damaged == () and contents_of(folder / "feats.h5") == truth

    def merging(folder: Path) -> bool:
        merge(folder / "feats.h5", [tmp_path / "feats.h5"])
        return verify(folder / "feats.h5").damaged == () and contents_of(folder / "feats.h5") == truth

    for name, work in (("pack", packing), ("unpack", unpacking), ("merge", merging)):
        now = tmp_path / name / "now"
        now.mkdir(parents=True)
        with Recording(now) as recording:
            work(now)
            recording.say(name)
        states = without_repeats(recording.states)
        assert recording.boundaries > 10
        for number, state in enumerate(states):
            folder = tmp_path / name / str(number)
            folder.mkdir()
            assert work(state.write(folder)), (name, state.how, state.before)
            if state.said:
                assert state.named() == states[-1].named()
        count(name, recording, len(states))


# The run folder


@dataclass(frozen=True)
class Trained:
    """A training of two epochs, recorded; `folder` is what it left."""

    cache: Path
    folder: Path
    recording: Recording


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Trained:
    home = tmp_path_factory.mktemp("recorded") / "now"
    home.mkdir()
    with Recording(home) as recording:

        def tell(progress: Progress) -> None:
            for epoch in range(1, EPOCHS + 1):
                ended = progress.done * EPOCHS >= progress.total * epoch
                if ended and progress.detail.startswith(f"epoch {epoch}:") and f"epoch {epoch}" not in recording._said:
                    recording.say(f"epoch {epoch}")

        train_small(world.cache, home / "run", progress=tell)
        recording.say("finished")
    return Trained(world.cache, home / "run", recording)


def train_small(cache: Path, folder: Path, **options: object) -> None:
    settings = [f"train.epochs={EPOCHS}", "spatial.top_k=2"]
    train(cache, overrides=settings, out=folder, device="cpu", **options)


def look_at_run(folder: Path, said: tuple[str, ...]) -> None:
    """What was reported is there, what has its name can be read, and they fit each other."""
    for path in folder.glob("*.safetensors"):
        load_checkpoint(folder, path.stem)
    epochs = sum(word.startswith("epoch") for word in said)
    if said:
        counts = load_checkpoint(folder, "last")[1]["counts"]
        assert counts["epoch"] >= epochs and load_checkpoint(folder, "best")[1]["epoch"] >= 1
        assert len(read_rows(read_run(folder), up_to=counts["epoch"])) == counts["epoch"]
        assert newest_run(folder.parent).folder == folder
    if (folder / "run.json").exists():
        assert read_run(folder).finished >= ("finished" in said)
    for path in [*folder.glob("*.json"), *folder.glob("eval-*/*.json")]:
        json.loads(path.read_text())


def complete(folder: Path, cache: Path) -> None:
    """As a person would: resume what is a run, start again what is none yet, nothing where it is finished."""
    if not (folder / "run.json").exists():
        train_small(cache, folder)
    elif not read_run(folder).finished:
        resume(folder, device="cpu")


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_a_training_leaves_whole_checkpoints_and_what_was_reported(trained, tmp_path, count):
    states = trained.recording.states
    for number, state in enumerate(states):
        folder = state.write(tmp_path / str(number)) / "run"
        look_at_run(folder, state.said)
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    assert trained.recording.boundaries > 60 and len(states) > 30
    assert states[-1].said == ("epoch 1", "epoch 2", "finished")
    count("training", trained.recording, 0)


@pytest.mark.promise(11)
def test_resuming_after_a_crash_at_some_writes_ends_with_the_same_bytes(trained, tmp_path):
    kinds = without_repeats(trained.recording.states)
    for number in range(1, len(kinds), len(kinds) // 4):  # here some, in the long variant all
        completes(kinds[number], trained, tmp_path / str(number))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(11)
def test_resuming_after_a_crash_at_any_write_ends_with_the_same_bytes(trained, tmp_path, count):
    for number, state in enumerate(trained.recording.states):
        completes(state, trained, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))
    count("training", trained.recording, len(trained.recording.states))


def completes(state: State, trained: Trained, home: Path) -> None:
    folder = state.write(home) / "run"
    torch.manual_seed(99)  # whatever happened in between must not matter
    complete(folder, trained.cache)
    found, truth = lasting(folder), lasting(trained.folder)
    assert [name for name in truth if found.get(name) != truth[name]] == [], (state.how, state.before)
    assert not list(folder.glob(".*")), "what was half-written is swept away"


# What is written once


def same_again(work: Callable[[Path], object], home: Path, *, least: int) -> tuple[Recording, int]:
    """Records `work` on an empty folder; in every state what has its name is whole, and `work` again makes the same."""
    now = home / "now"
    now.mkdir(parents=True)
    with Recording(now) as recording:
        work(now)
        recording.say("done")
    truth = {str(path.relative_to(now)): path.read_bytes() for path in now.rglob("*") if path.is_file()}
    for state in recording.states:
        assert state.named().items() <= truth.items(), (state.how, state.before)
        if state.said:
            assert state.named() == truth, (state.how, state.before)
    truth = {name: _kept(name, content) for name, content in truth.items()}
    states = without_repeats(recording.states)
    for number, state in enumerate(states):
        folder = home / str(number) / "now"
        folder.mkdir(parents=True)
        work(state.write(folder))
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        found = {name: _kept(name, content) for name, content in found.items() if not Path(name).name.startswith(".")}
        assert found == truth
    assert recording.boundaries > least
    return recording, len(states)


def _kept(name: str, content: bytes) -> bytes:
    """What is the same whenever it is made: of a video the beginning, since its encoder's threads race."""
    return content[:32] if name.endswith(".mp4") else content


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_an_evaluation_leaves_whole_files_that_are_completed(trained, tmp_path, count):
    def work(folder: Path) -> None:
        evaluate(trained.folder, split="test", out=folder / "eval", device="cpu")

    count("evaluation", *same_again(work, tmp_path, least=12))


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_an_export_leaves_all_of_it_or_nothing(trained, tmp_path, count):
    def work(folder: Path) -> None:
        if not (folder / "mine").exists():
            export(trained.folder, folder / "mine")

    recording, completed = same_again(work, tmp_path, least=12)
    names = {frozenset(state.named()) for state in recording.states}
    assert frozenset() in names and len(names) == 2, "all or nothing"
    count("export", recording, completed)


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_answers_leaves_whole_files_that_are_made_again(trained, world, tmp_path, count):
    video = sorted(world.videos.glob("*.mp4"))[0]
    moments = (Moment(1.0, 3.0, 0.9), Moment(4.0, 6.0, 0.5))
    answer = Answer("a red star", video, 24.0, moments, Saliency(2.0, (0.1,) * 12))

    def work(folder: Path) -> None:
        out, picture = folder / "answers.csv", folder / "answers.png"
        write_told([answer], form="csv", out=out, clips=folder / "clips", picture=picture, write=pytest.fail)

    count("answers", *same_again(work, tmp_path, least=12))
