"""A kill or a loss of power before any call that changes files: what was reported is whole, no published file is
half-written, and the same command ends with the same bytes.

The states that a crash leaves are recorded (see disk_recording.py). The long variant completes the work from every
state, the short one from one state of each kind:

    python -m pytest tests/crash/test_replay.py -m long -n 0
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from disk_recording import Recording, State, without_repeats
from processes import check_cache, contents_of, part_stamps, run_contents
from two_video_cache import VIDEOS, TextEncoder, annotation_line, write_cache

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.export_model import export
from costl.ask.output import write_answers
from costl.evaluate import evaluate
from costl.pipeline import add_queries
from costl.pipeline.cache.merge import merge
from costl.pipeline.cache.pack import pack, unpack
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.words import stored_words
from costl.pipeline.progress import Progress
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import newest_run, read_rows, read_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs folders that can be forced to the disk")
EPOCHS = 2


@pytest.fixture
def report_crashes(report_figure):
    """Reports how many crash points were replayed."""

    def report(name: str, recording: Recording, completed: int) -> None:
        report_figure(f"{name}: {recording.calls} calls, {len(recording.states)} states, {completed} completed")

    return report


def test_the_recording_notices_a_missing_fsync(tmp_path):
    """Three ways to write a file, two of which lose content or the name when the power is lost."""

    def write_file(path: Path, *, sync: bool, sync_folder: bool) -> list[State]:
        (path / "old").write_bytes(b"before")
        with Recording(path) as recording:
            temporary = path / ".temporary"
            with temporary.open("wb") as file:
                file.write(b"0123456789")
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(path / "published")
            if sync_folder:
                folder = os.open(path, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
            recording.report("published")
            os.stat(path)
        assert all(state.files["old"] == b"before" for state in recording.states)
        return recording.states

    def contents_after_crash(name: str, *, sync: bool, sync_folder: bool) -> tuple[set[bytes], set[bytes | None]]:
        """The contents of the file wherever it is there, and in the states after it was reported (None: not there)."""
        (tmp_path / name).mkdir()
        states = write_file(tmp_path / name, sync=sync, sync_folder=sync_folder)
        present = {state.files["published"] for state in states if "published" in state.files}
        return present, {state.files.get("published") for state in states if state.reported}

    assert contents_after_crash("a", sync=True, sync_folder=True) == ({b"0123456789"}, {b"0123456789"})
    assert contents_after_crash("b", sync=False, sync_folder=True)[0] == {b"0123456789", b"01234"}
    assert None in contents_after_crash("c", sync=True, sync_folder=False)[1]


# The cache


@pytest.mark.promise(1)
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_crash_at_any_write_of_an_extraction_loses_no_reported_video(tmp_path, report_crashes, every):
    class Reports(list):
        def append(self, name: str) -> None:
            recording.report(name)

    (tmp_path / "recorded").mkdir()
    with Recording(tmp_path / "recorded") as recording:
        write_cache(tmp_path / "recorded" / "feats.h5", Reports())
    truth = contents_of(tmp_path / "recorded" / "feats.h5")
    assert {state.reported for state in recording.states} == {(), ("a",), ("a", "b")}
    kinds = without_repeats(recording.states)
    completed = 0
    for number, state in enumerate(recording.states):
        folder = state.write(tmp_path / str(number))
        check_cache(folder / "feats.h5", state.reported)
        if state in kinds or number % every == 0:
            complete_cache(folder, state, truth)
            completed += 1
        shutil.rmtree(folder)
    assert recording.calls > 40 and len(recording.states) > 50
    report_crashes("cache", recording, completed)


def complete_cache(folder: Path, state: State, truth: dict[str, bytes]) -> None:
    """The same extraction extracts the remaining videos and no other."""
    before = part_stamps(folder / "feats.h5")
    write_cache(folder / "feats.h5", [])
    assert contents_of(folder / "feats.h5") == truth, (state.crash, state.next_call)
    after = part_stamps(folder / "feats.h5")
    reported = {name: stamp for name, stamp in after.items() if name in state.reported}
    assert reported.items() <= before.items(), "a finished video was extracted again"
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.promise(1)
def test_a_crash_while_queries_are_added_leaves_one_whole_index(tmp_path, monkeypatch, report_crashes):
    monkeypatch.setattr(add_queries, "reload_encoder", lambda *_, **__: TextEncoder())
    home = tmp_path / "recorded"
    home.mkdir()
    write_cache(home / "feats.h5", [])
    (tmp_path / "more.jsonl").write_text(annotation_line("a bird", "b"), encoding="utf-8")
    old = without_history(contents_of(home / "feats.h5"))

    def add(folder: Path) -> dict[str, bytes]:
        add_queries.add_queries(folder / "feats.h5", tmp_path / "more.jsonl", weights="here")
        return without_history(contents_of(folder / "feats.h5"))

    with Recording(home) as recording:
        new = add(home)
        recording.report("more")
    for number, state in enumerate(recording.states):
        folder = state.write(tmp_path / str(number))
        check_cache(folder / "feats.h5", VIDEOS)
        reader = CacheReader(folder / "feats.h5")
        assert {"a dog", "a cat"} <= stored_words(folder / "feats.h5").keys()
        assert ("more" in reader.splits) >= ("more" in state.reported)
        assert reader.path.read_bytes() in (old["feats.h5"], new["feats.h5"])
        shutil.rmtree(folder)
    for number, state in enumerate(without_repeats(recording.states)):
        added = add(state.write(tmp_path / str(number)))
        different = {name for name in added | new if added.get(name) != new.get(name)}
        assert different == set(), (state.crash, state.next_call)
    report_crashes("queries added", recording, len(without_repeats(recording.states)))


def without_history(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.endswith(".jsonl")}


@pytest.mark.promise(1)
def test_a_crash_while_packing_or_merging_leaves_what_can_be_completed(tmp_path, report_crashes):
    write_cache(tmp_path / "feats.h5", [])
    truth = contents_of(tmp_path / "feats.h5")
    pack(tmp_path / "feats.h5", out=tmp_path / "one.h5")
    packed = (tmp_path / "one.h5").read_bytes()

    def packing(folder: Path) -> bool:
        out = folder / "packed.h5"
        if not out.exists():  # `pack` refuses an existing file
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
        recorded = tmp_path / name / "recorded"
        recorded.mkdir(parents=True)
        with Recording(recorded) as recording:
            work(recorded)
            recording.report(name)
        states = without_repeats(recording.states)
        assert recording.calls > 10
        for number, state in enumerate(states):
            folder = tmp_path / name / str(number)
            folder.mkdir()
            assert work(state.write(folder)), (name, state.crash, state.next_call)
            if state.reported:
                assert state.published() == states[-1].published()
        report_crashes(name, recording, len(states))


# The run folder


@dataclass(frozen=True)
class Trained:
    """A recorded training of two epochs; `folder` is its finished run folder."""

    cache: Path
    folder: Path
    recording: Recording


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Trained:
    home = tmp_path_factory.mktemp("training") / "recorded"
    home.mkdir()
    with Recording(home) as recording:

        def report_epochs(progress: Progress) -> None:
            for epoch in range(1, EPOCHS + 1):
                name = f"epoch {epoch}"
                ended = progress.done * EPOCHS >= progress.total * epoch
                if ended and progress.detail.startswith(f"{name}:") and name not in recording.reported:
                    recording.report(name)

        train_small(world.cache, home / "run", progress=report_epochs)
        recording.report("finished")
    return Trained(world.cache, home / "run", recording)


def train_small(cache: Path, folder: Path, **options: object) -> None:
    settings = [f"train.epochs={EPOCHS}", "spatial.top_k=2"]
    train(cache, overrides=settings, out=folder, device="cpu", **options)


def check_run(folder: Path, reported: tuple[str, ...]) -> None:
    """Checks that every published file can be read, and that all that was reported is there and consistent."""
    for path in folder.glob("*.safetensors"):
        load_checkpoint(folder, path.stem)
    epochs = sum(name.startswith("epoch") for name in reported)
    if reported:
        counts = load_checkpoint(folder, "last")[1]["counts"]
        assert counts["epoch"] >= epochs and load_checkpoint(folder, "best")[1]["epoch"] >= 1
        assert len(read_rows(read_run(folder), up_to=counts["epoch"])) == counts["epoch"]
        assert newest_run(folder.parent).folder == folder
    if (folder / "run.json").exists():
        assert read_run(folder).finished >= ("finished" in reported)
    for path in [*folder.glob("*.json"), *folder.glob("eval-*/*.json")]:
        json.loads(path.read_text())


def start_or_resume(folder: Path, cache: Path) -> None:
    """As a user would: starts again if there is no run yet, resumes an unfinished run, leaves a finished one."""
    if not (folder / "run.json").exists():
        train_small(cache, folder)
    elif not read_run(folder).finished:
        resume(folder, device="cpu")


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_a_training_leaves_whole_checkpoints(trained, tmp_path, report_crashes):
    states = trained.recording.states
    for number, state in enumerate(states):
        folder = state.write(tmp_path / str(number)) / "run"
        check_run(folder, state.reported)
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    assert trained.recording.calls > 60 and len(states) > 30
    assert states[-1].reported == ("epoch 1", "epoch 2", "finished")
    report_crashes("training", trained.recording, 0)


@pytest.mark.promise(11)
def test_resuming_after_a_crash_at_some_writes_ends_with_the_same_bytes(trained, tmp_path):
    kinds = without_repeats(trained.recording.states)
    for number in range(1, len(kinds), len(kinds) // 4):  # the long test below takes all of them
        complete_run(kinds[number], trained, tmp_path / str(number))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(11)
def test_resuming_after_a_crash_at_any_write_ends_with_the_same_bytes(trained, tmp_path, report_crashes):
    for number, state in enumerate(trained.recording.states):
        complete_run(state, trained, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))
    report_crashes("training", trained.recording, len(trained.recording.states))


def complete_run(state: State, trained: Trained, home: Path) -> None:
    folder = state.write(home) / "run"
    torch.manual_seed(99)  # the random state of this process must not matter
    start_or_resume(folder, trained.cache)
    resumed = run_contents(folder)
    truth = run_contents(trained.folder)
    assert [name for name in truth if resumed.get(name) != truth[name]] == [], (state.crash, state.next_call)
    assert not list(folder.glob(".*")), "a temporary file is left"


# Files that are written once


def replay(work: Callable[[Path], object], home: Path, *, least: int) -> tuple[Recording, int]:
    """Records `work` on an empty folder. In every state the published files are whole, and `work` completes them."""
    recorded = home / "recorded"
    recorded.mkdir(parents=True)
    with Recording(recorded) as recording:
        work(recorded)
        recording.report("done")
    truth = read_files(recorded)
    for state in recording.states:
        assert state.published().items() <= truth.items(), (state.crash, state.next_call)
        if state.reported:
            assert state.published() == truth, (state.crash, state.next_call)
    states = without_repeats(recording.states)
    for number, state in enumerate(states):
        folder = home / str(number) / "recorded"
        folder.mkdir(parents=True)
        work(state.write(folder))
        published = {name: data for name, data in read_files(folder).items() if not Path(name).name.startswith(".")}
        assert repeatable(published) == repeatable(truth)
    assert recording.calls > least
    return recording, len(states)


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def repeatable(files: dict[str, bytes]) -> dict[str, bytes]:
    """What is the same in every run: only the start of a video, since the encoder's threads change the rest."""
    return {name: content[:32] if name.endswith(".mp4") else content for name, content in files.items()}


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_an_evaluation_leaves_whole_files(trained, tmp_path, report_crashes):
    def work(folder: Path) -> None:
        evaluate(trained.folder, split="test", out=folder / "eval", device="cpu")

    report_crashes("evaluation", *replay(work, tmp_path, least=12))


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_an_export_leaves_all_of_it_or_nothing(trained, tmp_path, report_crashes):
    def work(folder: Path) -> None:
        if not (folder / "mine").exists():
            export(trained.folder, folder / "mine")

    recording, completed = replay(work, tmp_path, least=12)
    names = {frozenset(state.published()) for state in recording.states}
    assert frozenset() in names and len(names) == 2, "all or nothing"
    report_crashes("export", recording, completed)


@pytest.mark.promise(12)
def test_a_crash_at_any_write_of_answers_leaves_whole_files(trained, world, tmp_path, report_crashes):
    video = sorted(world.videos.glob("*.mp4"))[0]
    moments = (Moment(1.0, 3.0, 0.9), Moment(4.0, 6.0, 0.5))
    answer = Answer("a red star", video, 24.0, moments, Saliency(2.0, (0.1,) * 12))

    def work(folder: Path) -> None:
        out, picture = folder / "answers.csv", folder / "answers.png"
        write_answers(
            [answer],
            output_format="csv",
            out=out,
            cut_folder=folder / "clips",
            picture=picture,
            print_text=pytest.fail,
        )

    report_crashes("answers", *replay(work, tmp_path, least=12))
