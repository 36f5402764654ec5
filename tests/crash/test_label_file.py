"""A kill or a loss of power while labels are made: whatever was reported as saved is there, and the next start goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disk_recording import Recording, without_repeats

from costl.label.rows import Label, Row
from costl.label.store import Edit, LabelStore, open_labels
from costl.pipeline.formats.files import sync

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs folders that can be forced to the disk")
ROOT = Path(__file__).parents[2]
FILE = "labels.jsonl"
# Adds labels without end, changes every third one, and prints what is saved.
LABELLER = """
import itertools, json, pathlib, sys
from costl.label.store import Edit, open_labels
row = lambda number, end: {"query": f"sentence {number}", "vid": "a", "duration": 9, "relevant_windows": [[1, end]]}
with open_labels(pathlib.Path(sys.argv[1])) as store:
    first = len(store.labels())
    print("ready", flush=True)
    for number in itertools.count(first):
        label = store.edit(Edit(None, "", row(number, 2)))
        print(json.dumps(label.row), flush=True)
        if number % 3 == 0:
            label = store.edit(Edit(label.qid, label.version, row(number, 3)))
            print(json.dumps(label.row), flush=True)
"""


def row(query: str, end_s: float = 2) -> dict:
    return {"query": query, "vid": "a", "duration": 10, "relevant_windows": [[1, end_s]]}


def label_everything(folder: Path, recording: Recording) -> list[dict[str, float]]:
    """Adds, changes and removes labels, also while the file is edited by hand.

    Returns the sentences with the end of their moment after each report.
    """
    expected: list[dict[str, float]] = []
    now: dict[str, float] = {}

    def edit(store: LabelStore, sentence: str, end_s: float | None, known: Label | None = None) -> Label | None:
        new = None if end_s is None else row(sentence, end_s)
        label = store.edit(Edit(known and known.qid, known.version if known else "", new))
        if end_s is None:
            del now[sentence]
        else:
            now[sentence] = end_s
        expected.append(dict(now))
        recording.report(str(len(expected)))
        return label

    with open_labels(folder / FILE) as store:
        dog = edit(store, "a dog", 2)
        cat = edit(store, "a cat", 2)
        edit(store, "a dog", 5, dog)
        by_hand = {"qid": dog.qid, **row("by hand", 9)}  # the same label: both versions stay
        (folder / FILE).write_text(json.dumps(by_hand) + "\n", encoding="utf-8")
        sync(folder / FILE)
        store.look_again(at_once=True)
        now["by hand"] = 9
        edit(store, "a cat", None, cat)
        edit(store, "a bird", 2)
    return expected


def test_a_crash_at_any_call_loses_no_label_that_was_reported(tmp_path, report_figure):
    folder = tmp_path / "recorded"
    folder.mkdir()
    with Recording(folder) as recording:
        expected = label_everything(folder, recording)
    assert len(without_repeats(recording.states)) > 10
    for number, state in enumerate(recording.states):
        copy = state.write(tmp_path / str(number))
        copy.mkdir(exist_ok=True)
        if not state.files.get(FILE, b"\n").endswith(b"\n"):
            (copy / FILE).unlink()  # half of what was written by hand, which did not reach the disk
        for _ in range(2):  # a second start changes nothing
            with open_labels(copy / FILE) as store:
                found = sorted((label.row["query"], label.query.windows[0][1]) for label in store.labels())
        reported = len(state.reported)
        # The next label may be there as well, and what was written by hand from some call on.
        allowed = [{}, *expected][reported : reported + 2]
        allowed += [one | {"by hand": 9} for one in allowed]
        assert dict(found) in allowed and len(dict(found)) == len(found), (state.crash, state.next_call, found)
        assert {file.name for file in copy.iterdir()} <= {FILE, f".{FILE}-lock"}, (state.crash, state.next_call)
        shutil.rmtree(copy)
    report_figure(f"label file: {recording.calls} calls, {len(recording.states)} states")


def test_a_killed_process_loses_no_label_that_it_has_printed(tmp_path):
    rng = random.Random(0)
    saved: dict[int, Row] = {}
    for _ in range(3):
        command = [sys.executable, "-c", LABELLER, tmp_path / FILE]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.02, 0.2))
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                printed = json.loads(line)
                saved[printed["qid"]] = printed
        with open_labels(tmp_path / FILE) as store:
            found = {label.qid: label.row for label in store.labels()}
        assert saved and saved.keys() <= found.keys()
        for qid, printed in saved.items():  # the last change may be on the disk and not yet printed
            changed = {**printed, "relevant_windows": [[1, 3]]}
            assert found[qid] in (printed, changed if qid == max(saved) else printed)
        saved = found
        assert not (tmp_path / f"{FILE}.journal").exists()
