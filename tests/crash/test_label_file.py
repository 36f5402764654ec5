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

from costl.label.rows import Row
from costl.label.store import Edit, LabelStore, open_labels

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


def label_everything(folder: Path, recording: Recording) -> dict[str, Row | None]:
    """Adds, changes and removes labels, also while the file is edited by hand; returns each label by its report."""
    reports: dict[str, Row | None] = {}

    def edit(store: LabelStore, edit: Edit) -> Row | None:
        label = store.edit(edit)
        report = f"{len(reports)} {edit.qid or label.qid}"
        reports[report] = label and label.row
        recording.report(report)
        return label

    with open_labels(folder / FILE) as store:
        dog = edit(store, Edit(None, "", row("a dog")))
        cat = edit(store, Edit(None, "", row("a cat")))
        edit(store, Edit(dog.qid, dog.version, row("a dog", 5)))
        (folder / FILE).write_text(json.dumps({"qid": "hand", **row("by hand")}) + "\n", encoding="utf-8")
        store.look_again(at_once=True)
        edit(store, Edit(cat.qid, cat.version, None))
        edit(store, Edit(None, "", row("a bird")))
    recording.report("closed")
    return reports


def test_a_crash_at_any_call_loses_no_label_that_was_reported(tmp_path, report_figure):
    folder = tmp_path / "recorded"
    folder.mkdir()
    with Recording(folder) as recording:
        reports = label_everything(folder, recording)
    whole = {"a dog": 5, "a bird": 2, "by hand": 2}
    kinds = without_repeats(recording.states)
    assert len(kinds) > 10
    for number, state in enumerate(recording.states):
        copy = state.write(tmp_path / str(number))
        copy.mkdir(exist_ok=True)
        by_hand_is_torn = "hand" in str(state.files.get(FILE, b"")) and not str(state.files[FILE], "utf-8").endswith("}\n")
        if by_hand_is_torn:  # the editor by hand of this test does not force its file to the disk
            (copy / FILE).unlink()
        with open_labels(copy / FILE) as store:
            found = {label.qid: label.row for label in store.labels()}
        for report in state.reported:
            if report == "closed":
                assert {label["query"]: label["relevant_windows"][0][1] for label in found.values()} == whole
                continue
            qid = int(report.split()[1])
            later = [reports[other] for other in reports if int(other.split()[1]) == qid and int(other.split()[0]) >= int(report.split()[0])]
            allowed = [one for one in later]
            assert found.get(qid) in allowed, (state.crash, state.next_call, report, found)
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
