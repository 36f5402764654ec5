"""The labels of a file while a page is open: edits, conflicts, other programs, and a disk that refuses."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from costl.label.journal import Change, Journal
from costl.label.rows import Label, parse_labels
from costl.label.store import Conflict, Edit, LabelStore, merge, open_labels
from costl.pipeline.errors import BusyError, CacheError, CostlError, UsageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs locks on files")


def row(query: str, end_s: float = 2, vid: str = "a") -> dict:
    return {"query": query, "vid": vid, "duration": 10, "relevant_windows": [[1, end_s]]}


def add(store: LabelStore, query: str, **changes) -> Label:
    label = store.edit(Edit(None, "", row(query, **changes)))
    assert label is not None
    return label


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows), encoding="utf-8")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "labels.jsonl"


def test_labels_are_written_when_the_store_is_closed(path):
    with open_labels(path) as store:
        dog, cat = add(store, "a dog"), add(store, "a cat")
        store.edit(Edit(dog.qid, dog.version, row("a dog", 3)))
        store.edit(Edit(cat.qid, cat.version, None))
        assert not path.exists()
        assert [change.after for change in Journal(path.with_name("labels.jsonl.journal")).read().values()] == [
            {"qid": 1, **row("a dog", 3)},
            None,
        ]
    assert lines(path) == [{"qid": 1, **row("a dog", 3)}]
    assert {file.name for file in path.parent.iterdir()} == {"labels.jsonl", ".labels.jsonl-lock"}


def test_a_store_without_a_change_writes_nothing(path):
    path.write_text('{"qid":1,"query":"a","vid":"a","duration":3.50}\n\n', encoding="utf-8")
    before = path.stat().st_mtime_ns, path.read_bytes()
    with open_labels(path) as store:
        assert [label.qid for label in store.labels()] == [1]
    assert before == (path.stat().st_mtime_ns, path.read_bytes())


def test_a_journal_of_a_killed_process_is_written_first(path):
    write(path, {"qid": 4, **row("a bird")})
    killed = LabelStore(path)
    dog = add(killed, "a dog")
    killed.edit(Edit(4, killed.labels()[0].version, None))
    with open_labels(path) as store:
        assert [label.qid for label in store.labels()] == [dog.qid]
        assert lines(path) == [dog.row] and not path.with_name("labels.jsonl.journal").exists()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_ignored(path, cut):
    killed = LabelStore(path)
    add(killed, "a dog")
    add(killed, "a cat")
    journal = path.with_name("labels.jsonl.journal")
    journal.write_bytes(journal.read_bytes()[:-cut])
    with open_labels(path) as store:
        assert [label.row["query"] for label in store.labels()] == ["a dog"]


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\0\n", b'{"qid": 1}\n', b"\xff\n"])
def test_what_a_lost_power_leaves_at_the_end_is_ignored(path, tail):
    add(LabelStore(path), "a dog")
    with path.with_name("labels.jsonl.journal").open("ab") as file:
        file.write(tail)
    with open_labels(path) as store:
        assert len(store.labels()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", None),
        ("hello\nworld\n", None),
        ('{"costl label journal": 2}\n{"qid": 1, "before": null, "after": null}\n', "labels.jsonl.journal:1: damaged"),
        ('{"costl label journal": 1}\nx\n{"qid": 1, "before": null, "after": null}\n', "labels.jsonl.journal:2: damaged"),
        ('{"qid": 1, "before": null, "after": null}\n', "not a label journal of this version"),
    ],
)
def test_a_damaged_journal_is_refused_and_stays(path, text, message):
    journal = path.with_name("labels.jsonl.journal")
    journal.write_text(text, encoding="utf-8")
    if message is None:  # a file without a single change
        with open_labels(path) as store:
            assert store.labels() == []
        return
    with pytest.raises(CacheError, match=message), open_labels(path):
        pass
    assert journal.read_text(encoding="utf-8") == text


def test_an_edit_that_was_made_already_changes_nothing(path):
    with open_labels(path) as store:
        dog = add(store, "a dog")
        changes = store.count
        assert add(store, "a dog") is dog  # its reply was lost
        assert store.edit(Edit(dog.qid, "", dog.row)) is dog
        assert store.count == changes
        store.edit(Edit(dog.qid, dog.version, None))
        assert store.edit(Edit(dog.qid, dog.version, None)) is None


@pytest.mark.parametrize(
    "late",
    [
        lambda dog: Edit(dog.qid, dog.version, row("a dog", 5)),
        lambda dog: Edit(dog.qid, dog.version, None),
        lambda dog: Edit(dog.qid, "", row("a dog", 5)),
        lambda dog: Edit(None, "", row("a dog", 5)),
    ],
    ids=["changed", "removed", "restored", "added"],
)
def test_an_edit_of_another_version_is_a_conflict(path, late: Callable[[Label], Edit]):
    with open_labels(path) as store:
        dog = add(store, "a dog")
        now = store.edit(Edit(dog.qid, dog.version, row("a dog", 4)))
        with pytest.raises(Conflict) as conflict:
            store.edit(late(dog))
        assert conflict.value.current == now and store.labels() == [now]
    assert lines(path) == [now.row]


def test_a_change_of_a_removed_label_is_a_conflict_and_an_undo_restores_it(path):
    with open_labels(path) as store:
        dog = add(store, "a dog")
        store.edit(Edit(dog.qid, dog.version, None))
        with pytest.raises(Conflict) as conflict:
            store.edit(Edit(dog.qid, dog.version, row("a dog", 4)))
        assert conflict.value.current is None
        assert store.latest(dog.qid) == dog
        assert store.edit(Edit(dog.qid, "", row("a dog"))) == dog


def test_two_windows_at_once_lose_no_label(path):
    with open_labels(path) as store:

        def label(window: int) -> None:
            for number in range(20):
                add(store, f"{window} {number}")

        windows = [threading.Thread(target=label, args=(window,)) for window in range(4)]
        [window.start() for window in windows]
        [window.join() for window in windows]
    assert {one["query"] for one in lines(path)} == {f"{window} {number}" for window in range(4) for number in range(20)}
    assert len({one["qid"] for one in lines(path)}) == 80


def test_a_second_process_is_refused(path):
    with open_labels(path), pytest.raises(BusyError, match="another costl label has it open"), open_labels(path):
        pass
    with open_labels(path):
        pass


def test_other_windows_see_what_has_changed(path):
    with open_labels(path) as store:
        add(store, "a dog", vid="a.mp4")
        count = store.count
        add(store, "a cat", vid="b")
        assert store.changed_since(0) == {"a", "b"} and store.changed_since(count) == {"b"}
        assert store.changed_since(store.count) == set()


def test_an_edit_by_hand_is_noticed_when_the_file_is_still(path, monkeypatch):
    write(path, {"qid": 1, **row("a dog")}, {"qid": 2, **row("a cat")})
    with open_labels(path) as store:
        add(store, "a bird")
        write(path, {"qid": 1, **row("by hand")}, {"qid": 9, **row("new by hand")})
        store.look_again()
        assert [label.qid for label in store.labels()] == [1, 2, 3], "it may still be being written"
        monkeypatch.setattr("costl.label.store._STILL_S", 0.0)
        store.look_again()
        assert {label.qid: label.row["query"] for label in store.labels()} == {1: "by hand", 9: "new by hand", 3: "a bird"}
        assert len(lines(path)) == 2, "it is not overwritten before the end"
    assert [one["query"] for one in lines(path)] == ["by hand", "new by hand", "a bird"]


def test_an_edit_by_hand_just_before_the_end_is_not_overwritten(path):
    with open_labels(path) as store:
        add(store, "a bird")
        write(path, {"qid": 8, **row("by hand")})
    assert [one["query"] for one in lines(path)] == ["by hand", "a bird"]


def test_a_kill_after_an_edit_by_hand_keeps_both(path):
    write(path, {"qid": 1, **row("a dog")})
    killed = LabelStore(path)
    killed.edit(Edit(1, killed.labels()[0].version, row("a dog", 5)))
    write(path, {"qid": 1, **row("by hand")})
    for _ in range(2):
        with open_labels(path) as store:
            assert {label.row["query"] for label in store.labels()} == {"by hand", "a dog"}
    assert [(one["qid"], one["query"]) for one in lines(path)] == [(1, "by hand"), (2, "a dog")]


def test_a_file_that_was_damaged_by_hand_is_named_and_nothing_is_lost(path):
    write(path, {"qid": 1, **row("a dog")})
    message = r"labels.jsonl:2: .*\nYour labels are in .*labels.jsonl.journal"
    with pytest.raises(UsageError, match=message), open_labels(path) as store:
        add(store, "a bird")
        path.write_text(path.read_text() + '{"qid": 2,\n', encoding="utf-8")
        store.look_again(at_once=True)
        assert "labels.jsonl:2" in store.problem and len(store.labels()) == 2
        add(store, "a cat")
    with pytest.raises(UsageError, match="More labels are in"), open_labels(path):
        pass
    write(path, {"qid": 1, **row("a dog")})
    with open_labels(path) as store:
        assert [label.row["query"] for label in store.labels()] == ["a dog", "a bird", "a cat"]


def test_a_file_that_is_gone_is_written_again(path):
    write(path, {"qid": 1, **row("a dog")})
    with open_labels(path) as store:
        add(store, "a bird")
        path.unlink()
        store.look_again(at_once=True)
    assert [one["query"] for one in lines(path)] == ["a dog", "a bird"]


A, B, C = ({"qid": 1, **row("x", end)} for end in (2, 3, 4))


@pytest.mark.parametrize(
    ("theirs", "before", "after", "expected", "notices"),
    [
        (A, A, B, {1: B}, 0),
        (A, A, None, {}, 0),
        (None, None, A, {1: A}, 0),
        (B, A, B, {1: B}, 0),
        (None, A, None, {}, 0),
        (A, B, B, {1: A}, 0),
        (B, A, C, {1: B, 2: C | {"qid": 2}}, 1),
        (A, None, B, {1: A, 2: B | {"qid": 2}}, 1),
        (B, A, None, {1: B}, 1),
        (None, A, B, {1: B}, 1),
    ],
)
def test_changes_here_and_in_the_file_are_merged(theirs, before, after, expected, notices):
    labels = {} if theirs is None else {1: Label.from_row(theirs)}
    merged, said = merge(labels, {1: Change(1, before, after)})
    assert {qid: label.row for qid, label in merged.items()} == expected and len(said) == notices
    assert all(qid == label.qid == label.row["qid"] for qid, label in merged.items())


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_refuses_the_edit_and_takes_the_next_one(path, monkeypatch, call):
    with open_labels(path) as store:
        add(store, "a dog")
        real = getattr(os, call)

        def fail(descriptor: int, *content: bytes) -> int:
            if call == "write":
                real(descriptor, content[0][:10])  # half of it
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(CostlError, match="No space left"):
                add(store, "a cat")
        assert [label.row["query"] for label in store.labels()] == ["a dog"]
        add(store, "a bird")
        killed = parse_labels("", "")
        for change in Journal(path.with_name("labels.jsonl.journal")).read().values():
            killed[change.qid] = Label.from_row(change.after)
        assert [label.row["query"] for label in killed.values()] == ["a dog", "a bird"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    if os.getuid() == 0:
        folder = Path("/proc/no/labels.jsonl")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        folder = tmp_path / "locked" / "labels.jsonl"
    with pytest.raises(UsageError, match=r"cannot be written .* --out names another file"), open_labels(folder):
        pass


def test_files_of_killed_processes_are_removed_and_those_of_editors_stay(path):
    for name in (".labels.jsonl.12-ab.tmp", ".labels.jsonl.journal.12-ab.tmp", ".labels.jsonl.swp"):
        (path.parent / name).touch()
    with open_labels(path):
        assert {file.name for file in path.parent.iterdir()} == {".labels.jsonl.swp", ".labels.jsonl-lock"}
