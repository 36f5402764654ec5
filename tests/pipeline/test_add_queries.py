"""The queries of new annotations are added to a finished cache, and nothing else changes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.evaluate import evaluate
from costl.pipeline.add_queries import SplitChange, add_queries
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.words import stored_words
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.errors import CacheError, UsageError
from costl.train import train


@pytest.fixture
def home(world, tmp_path) -> Path:
    """A folder with a finished cache and its CLIP, without videos."""
    copy = world.copy(tmp_path)
    for video in copy.videos.glob("*.mp4"):
        video.unlink()
    return tmp_path


@pytest.fixture(autouse=True)
def no_decoder(monkeypatch):
    for library in ("decord", "av"):
        monkeypatch.setitem(sys.modules, library, None)


def write(path: Path, *rows: tuple[str, str]) -> Path:
    lines = [
        {"qid": n, "query": query, "vid": vid, "duration": 24, "relevant_windows": [[2, 6]]}
        for n, (query, vid) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def add(home: Path, *rows: tuple[str, str], **options):
    return add_queries(home / "feats.h5", write(home / "more.jsonl", *rows), device="cpu", **options)


def parts(home: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in parts_folder(home / "feats.h5").glob("*.h5")}


def existing_query(home: Path) -> str:
    return json.loads(CacheReader(home / "feats.h5").annotations("test").splitlines()[0])["query"]


def test_a_split_is_added_with_its_queries_and_nothing_else_changes(home, monkeypatch):
    encoded: list[str] = []
    encode = CLIPEncoder.encode_text
    monkeypatch.setattr(CLIPEncoder, "encode_text", lambda self, texts: encoded.extend(texts) or encode(self, texts))
    before = CacheReader(home / "feats.h5")
    bytes_before = parts(home)
    old = existing_query(home)
    report = add(home, ("a thing never annotated", "test_0000"), (old, "val_0001"))
    assert (report.splits, report.new) == ((SplitChange("more", None, 2),), 1)
    assert report.exit_code == 0 and set(encoded) == {"a thing never annotated"}
    after = CacheReader(home / "feats.h5")
    assert after.rows == before.rows and parts(home) == bytes_before
    assert after.splits == ["more", *before.splits]
    assert all(after.annotations(split) == before.annotations(split) for split in before.splits)
    assert set(stored_words(home / "feats.h5")) == {*annotated_queries(before), "a thing never annotated"}
    assert len(list(after.words_path.parent.glob("*.h5"))) == 1
    after.verify_words()


def annotated_queries(reader: CacheReader) -> set[str]:
    texts = [reader.annotations(split) for split in reader.splits]
    return {json.loads(line)["query"] for text in texts for line in text.splitlines()}


def test_added_queries_have_the_tokens_that_an_extraction_gives(home):
    old = existing_query(home)
    before = CacheReader(home / "feats.h5").words(old)
    reader = CacheReader(home / "feats.h5")
    reader.words_path.unlink()  # so that every query is new
    report = add(home, (old, "test_0000"))
    assert report.new == len(annotated_queries(reader))
    after = CacheReader(home / "feats.h5").words(old)
    assert after.tokens.tobytes() == before.tokens.tobytes()
    assert after.sentence.tobytes() == before.sentence.tobytes()


def test_a_run_can_be_evaluated_on_a_split_that_was_added_later(home):
    run = train(home / "feats.h5", overrides=["train.epochs=1"], out=home / "run", device="cpu").run
    with pytest.raises(UsageError, match=r"no split 'more'.* costl cache add-queries \S+ --annotations more\.jsonl"):
        evaluate(run, split="more", device="cpu")
    add(home, ("a thing never annotated", "test_0000"), ("another", "test_0001"))
    assert evaluate(run, split="more", device="cpu").metrics["scored"]["queries"] == 2


def test_a_split_of_the_same_name_is_replaced_and_reported(home):
    add(home, ("first", "val_0000"), ("second", "val_0000"))
    report = add(home, ("third", "val_0000"))
    assert report.splits == (SplitChange("more", 2, 1),)
    words = stored_words(home / "feats.h5")
    assert "third" in words and "first" not in words


def test_a_folder_brings_all_its_splits(home):
    (home / "new").mkdir()
    for name in ("val", "test_hard", "notes"):
        write(home / "new" / f"{name}.jsonl", ("something new", "val_0000"))
    report = add_queries(home / "feats.h5", home / "new", device="cpu")
    assert [(split.name, split.before is None) for split in report.splits] == [("val", False), ("test_hard", True)]


def test_videos_without_features_are_refused_by_name_or_become_rows(home):
    rows = [("a", "test_0000"), ("b", "nowhere/1")]
    before = CacheReader(home / "feats.h5")
    with pytest.raises(UsageError, match=r"1 videos without features in .*: nowhere/1\. .*--allow-missing-videos"):
        add(home, *rows)
    assert CacheReader(home / "feats.h5").splits == before.splits
    report = add(home, *rows, allow_missing_videos=True)
    assert report.missing == ("nowhere/1",) and report.exit_code == 1
    after = CacheReader(home / "feats.h5")
    assert [row for row in after.rows if row.name != "nowhere/1"] == before.rows
    (row,) = (row for row in after.rows if row not in before.rows)
    assert (row.status, row.reason) == ("missing", "annotated, but its video is not there.")
    again = add(home, *rows, allow_missing_videos=True)
    assert CacheReader(again.cache).rows == after.rows, "an existing row stays as it is"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"duration": 50, "relevant_windows": [[40, 44]]}, r"query 0 \[40.0, 44.0\] in 'test_0000' \(24 s long, 50 by its"),
        ({"relevant_windows": [[6, 2]]}, r"more\.jsonl:1: window \[6.0, 2.0\]"),
        ({"vid": "Test_0000"}, r"without features in .*: 'Test_0000' \(did you mean 'test_0000'\?\)"),
    ],
)
def test_rows_that_training_would_refuse_are_refused_before_clip_is_loaded(home, changes, part, monkeypatch):
    monkeypatch.setattr("costl.pipeline.add_queries.reload_encoder", None)
    before = (home / "feats.h5").read_bytes()
    path = write(home / "more.jsonl", ("never annotated", "test_0000"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UsageError, match=part):
        add_queries(home / "feats.h5", path, device="cpu")
    assert (home / "feats.h5").read_bytes() == before


def test_names_with_an_ending_and_late_windows_are_read_and_noted(home):
    path = write(home / "more.jsonl", (existing_query(home), "test_0000.mp4"))
    path.write_text(path.read_text().replace("[2, 6]", "[2, 24.3]"))
    report = add_queries(home / "feats.h5", path, device="cpu")
    assert [note.rpartition(" ")[2] for note in report.notes] == ["'test_0000'.", "there."] and report.exit_code == 0
    assert json.loads(CacheReader(home / "feats.h5").annotations("more"))["vid"] == "test_0000"


def test_queries_for_another_clip_model_are_refused_naming_both(home):
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(home / "videos" / "clip", home / "other"))
    tensors = load_file(other / "open_clip_model.safetensors")
    tensors["logit_scale"] += 1
    save_file(tensors, other / "open_clip_model.safetensors")
    made_by = CacheReader(home / "feats.h5").fingerprint["weights"][:12]
    with pytest.raises(
        CacheError, match=rf"another CLIP than .*other \(weights: expected {made_by}…, here is \w{{12}}…"
    ):
        add(home, ("a", "test_0000"), weights=str(other))


def test_moved_weights_must_be_named_once_and_are_then_recorded(home):
    (home / "videos" / "clip").rename(home / "elsewhere")
    with pytest.raises(UsageError, match=r"if it has moved, say where it is with --weights"):
        add(home, ("a", "test_0000"))
    add(home, ("a", "test_0000"), weights=str(home / "elsewhere"))
    add(home, ("a", "test_0000"), ("b", "test_0000"))
    assert CacheReader(home / "feats.h5").source["weights"] == str(home / "elsewhere")


def test_a_cache_that_is_being_written_is_refused_at_once(home):
    reader = CacheReader(home / "feats.h5")
    with CacheWriter(reader.path, reader.contents, {}), pytest.raises(CacheError, match="another costl extract"):
        add(home, ("a", "test_0000"))


def test_an_invalid_split_is_refused_and_changes_nothing(home):
    before = (home / "feats.h5").read_bytes()
    for name, answer in (("..jsonl", "cannot be the name of a split"), ("a:b.jsonl", "cannot be the name")):
        with pytest.raises(UsageError, match=answer):
            add_queries(home / "feats.h5", write(home / name, ("a", "test_0000")), device="cpu")
    with pytest.raises(UsageError, match=r"more\.jsonl:1: 'query' is missing"):
        (home / "more.jsonl").write_text('{"qid": 1, "vid": "test_0000", "duration": 24}\n')
        add_queries(home / "feats.h5", home / "more.jsonl", device="cpu")
    with pytest.raises(UsageError, match="nowhere: no annotations"):
        add_queries(home / "feats.h5", home / "nowhere", device="cpu")
    assert (home / "feats.h5").read_bytes() == before


def test_a_cache_without_its_parts_or_of_imported_features_is_refused(home):
    import h5py

    with h5py.File(home / "feats.h5", "r+") as file:
        del file["fingerprint"]
        file["fingerprint"] = np.bytes_('{"streams":"clip"}')
    with pytest.raises(CacheError, match="its features were imported"):
        add(home, ("a", "test_0000"))
    shutil.rmtree(home / "feats.h5.parts")
    with pytest.raises(CacheError, match="a cache with its parts next to it"):
        add(home, ("a", "test_0000"))
    with pytest.raises(CacheError, match="no such file"):
        add_queries(home / "none.h5", home / "more.jsonl")


def test_the_command_reports_what_it_did(home, monkeypatch):
    monkeypatch.chdir(home)
    write(home / "more.jsonl", ("a new one", "test_0000"), ("dog " * 100, "val_0000"), ("b", "gone"))
    plain = ["cache", "add-queries", "feats.h5", "--annotations", "more.jsonl", "--device", "cpu"]
    first = CliRunner().invoke(main, [*plain, "--allow-missing-videos"])
    assert (first.exit_code, first.stdout) == (1, "feats.h5\n"), first.output
    for message in (
        "split more: 3 rows, is new.",
        "missing: gone",
        "cut: longer",
        "3 new queries encoded.",
    ):
        assert message in first.stderr
    again = CliRunner().invoke(main, [*plain, "--allow-missing-videos", "--json"])
    assert "split more: 3 rows, replaces one of 3 rows." in again.stderr
    data = json.loads(again.stdout)
    assert data["splits"] == [{"name": "more", "before": 3, "after": 3}] and data["missing"] == ["gone"]
    assert data["new"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cache", "add-queries", "feats.h5"], "Missing option '--annotations'"),
        (["cache", "add-queries", "feats.h5", "--annotations", "m.jsonl", "--fps", "1"], "No such option '--fps'"),
        (["extract"], "Missing option '--videos', for example: costl extract --videos dir/"),
    ],
)
def test_a_missing_or_unknown_option_is_refused(arguments, message):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_extracting_without_the_added_annotations_reports_dropped_splits(world, tmp_path):
    from costl.pipeline.extract import extract

    copy = world.copy(tmp_path)
    add(tmp_path, ("a new one", "test_0000"))
    report = extract(copy.videos, out=copy.cache, device="cpu", workers=1)
    assert report.dropped == ("more",) and report.done == ()
    assert CacheReader(copy.cache).splits == ["test", "test_unseen", "train", "val"]
