"""A folder of videos becomes a complete cache, and finished videos are not extracted again."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import decode_with_pyav, frame_times, frames_on_screen, make_video
from tiny_clip import write_clip_weights

from costl.data.queries import read_queries
from costl.pipeline import extract as extract_module
from costl.pipeline.add_queries import add_queries
from costl.pipeline.cache.inspect import inspect_cache
from costl.pipeline.cache.pack import pack, unpack
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.extract import ExtractReport, Progress, extract
from costl.pipeline.run import engine
from costl.pipeline.run.history import last_run, runs_file

SECONDS = {"v_a": 3.0, "v_b_0.0_2.0": 2.0, "Ünder way": 5.2}
FRAME = 1 / 25


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for number, (name, seconds) in enumerate(SECONDS.items()):
        size = (48, 64) if number else (96, 64)
        make_video(folder / f"{name}.mp4", frame_times(round(seconds / FRAME)), size=size)
    write_rows(folder / "train.jsonl", [("a dog", "v_a"), ("a red ball", "Ünder way"), ("a dog", "v_b_0.0_2.0")])
    write_rows(folder / "test.jsonl", [("a cat runs", "v_a")])
    write_clip_weights(folder / "clip")
    (folder / "costl.yaml").write_text("extract:\n  weights: clip\n  fps: 2\ntrain:\n  epochs: 7\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(world, tmp_path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "world"))


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [
        {"qid": n, "query": query, "vid": vid, "duration": SECONDS.get(vid, 1.0)} for n, (query, vid) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def run(folder: Path, **options) -> ExtractReport:
    return extract(folder, **{"out": folder.parent / "feats.h5", "device": "cpu", "workers": 1} | options)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    """A complete cache, to be copied."""
    home = tmp_path_factory.mktemp("finished")
    report = run(Path(shutil.copytree(world, home / "world")))
    assert report.failed == ()
    return home


@pytest.fixture
def done(finished, tmp_path) -> Path:
    """The data folder of a finished extraction; the cache is next to it."""
    return Path(shutil.copytree(finished, tmp_path / "home")) / "world"


def contents_of(cache: Path) -> dict[str, bytes]:
    files = [cache, *sorted(parts_folder(cache).glob("*.h5"))]
    return {file.name: file.read_bytes() for file in files}


def test_tokens_are_those_of_the_frames_on_screen_at_the_centres(done):
    reader = CacheReader(done.parent / "feats.h5")
    encoder = load_encoder(weights=str(done / "clip"))
    assert sorted(reader.video_ids) == sorted(SECONDS)
    for name, seconds in SECONDS.items():
        grid = reader.grid(name)
        assert grid.fps == 2.0 and grid.duration_s == pytest.approx(seconds, abs=1e-3)
        times_s, pictures = decode_with_pyav(done / f"{name}.mp4")
        shown = frames_on_screen(times_s, list(range(len(pictures))), grid.centres_s())
        np.testing.assert_allclose(reader.times_s(name), times_s[shown], atol=1e-4)
        expected = encoder.encode(np.stack([pictures[index] for index in shown]))
        np.testing.assert_allclose(reader.tokens(name).astype(np.float32), expected.tokens, atol=0.02)
        np.testing.assert_allclose(reader.joint_vectors(name), expected.joint, atol=2e-3)
        reader.verify(name)


def test_the_cache_holds_all_that_training_needs(done):
    reader = CacheReader(done.parent / "feats.h5")
    assert reader.splits == ["test", "train"]
    assert reader.annotations("train") == (done / "train.jsonl").read_text(encoding="utf-8")
    assert reader.settings == {"epochs": 7}
    assert (reader.fps, reader.patch_grid) == (2.0, (4, 4))
    assert reader.fingerprint["fps"] == 2.0
    encoder = load_encoder(weights=str(done / "clip"))
    for query, words in zip(("a dog", "a cat runs"), encoder.encode_text(["a dog", "a cat runs"]), strict=True):
        np.testing.assert_allclose(reader.words(query).sentence, words.sentence, atol=1e-6)
    assert reader.joint == encoder.joint


def test_a_second_run_decodes_nothing_and_changes_nothing(done, monkeypatch):
    before = contents_of(done.parent / "feats.h5")
    monkeypatch.setattr(engine, "decode_videos", lambda *_, **__: pytest.fail("decoded"))
    report = run(done)
    assert report.done == () and sorted(report.skipped) == sorted(SECONDS) and report.exit_code == 0
    assert contents_of(done.parent / "feats.h5") == before


@pytest.mark.promise(1)
def test_an_interrupted_run_is_completed_to_the_same_bytes(folder, done, monkeypatch):
    reported: list[Progress] = []
    saved, interrupted = [], threading.Event()
    store = CacheWriter.store

    def second_waits(self, video_id, **features):
        saved.append(video_id)
        if len(saved) == 2:
            interrupted.wait(60)
            time.sleep(0.3)
        return store(self, video_id, **features)

    def interrupt(progress: Progress) -> None:
        reported.append(progress)
        if progress.status == "ok":
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(CacheWriter, "store", second_waits)
    with pytest.raises(KeyboardInterrupt):
        run(folder, progress=interrupt)
    monkeypatch.setattr(CacheWriter, "store", store)
    half = CacheReader(folder.parent / "feats.h5")
    assert 1 <= len(half.video_ids) < 3
    assert {row.status for row in half.rows} == {"ok", "pending"}
    report = run(folder)
    assert sorted(report.skipped) == sorted(half.video_ids)
    assert contents_of(folder.parent / "feats.h5") == contents_of(done.parent / "feats.h5")
    assert [progress.stage for progress in reported][:2] == ["load", "words"]


@pytest.mark.promise(7)
def test_the_batch_and_the_number_of_processes_do_not_change_the_features(folder, done):
    run(folder, batch=5, workers=2)
    small_batches = CacheReader(folder.parent / "feats.h5")
    default = CacheReader(done.parent / "feats.h5")
    for name in SECONDS:
        np.testing.assert_allclose(small_batches.tokens(name).astype(np.float32), default.tokens(name), atol=4e-3)


def test_several_devices_give_the_same_bytes_as_one(folder, done):
    assert run(folder, device="cpu,cpu", workers=2).failed == ()
    assert contents_of(folder.parent / "feats.h5") == contents_of(done.parent / "feats.h5")


def test_each_run_adds_a_line_to_the_history_of_the_cache(done, monkeypatch):
    cache = done.parent / "feats.h5"
    (done / "v_a.mp4").write_text("not a video")
    run(done, precision="fp32")
    monkeypatch.setattr(CacheWriter, "write_index", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(done)
    first, second, third = map(json.loads, runs_file(cache).read_text().splitlines())
    assert first["videos"] == {"ok": 3} and first["frames"] == 6 + 4 + 10 and first["batch"] == [8]
    assert first["ended"] == "done" and first["frames_per_s"] > 0
    assert second["videos"] == {"skipped": 2, "failed": 1} and second["devices"] == ["cpu"]
    assert third["ended"] == "interrupted" and last_run(cache) == third


def test_a_bad_video_is_a_row_and_sets_the_exit_code(folder):
    (folder / "broken.mp4").write_text("not a video")
    write_rows(folder / "val.jsonl", [("a dog", "broken")])
    report = run(folder)
    assert sorted(report.done) == sorted(SECONDS)
    [row] = report.failed
    assert (row.name, row.status, report.exit_code) == ("broken", "failed", 1)
    reader = CacheReader(folder.parent / "feats.h5")
    assert sorted(reader.video_ids) == sorted(SECONDS)
    assert [failed.reason for failed in reader.rows if not failed.ok] == [row.reason]
    again = run(folder)
    assert again.done == () and len(again.failed) == 1, "only failed videos are tried again"


@pytest.mark.promise(3)
def test_errors_of_the_disk_in_a_row_stop_the_run_and_keep_finished_videos(folder, monkeypatch):
    monkeypatch.setattr(engine, "FAILURES_IN_A_ROW", 3)
    for n in range(5):
        (folder / f"z{n}.mp4").write_text("not a video")

    def remove_some(event: Progress) -> None:
        if event.stage == "check":  # the list of videos is made
            for path in folder.glob("z*.mp4"):
                path.unlink()

    with pytest.raises(CostlError, match="3 videos in a row failed"):
        run(folder, progress=remove_some)
    reader = CacheReader(folder.parent / "feats.h5")
    assert sorted(row.status for row in reader.rows if row.name.startswith("z")) == ["error"] * 3 + ["pending"] * 2
    assert sorted(reader.video_ids) == sorted(SECONDS)


# A folder from a Mac, a NAS or a browser: 24 of each kind beside the videos. Their suffix, content, and whether they are rows.
JUNK = {
    "AppleDouble": ("._v{}.mp4", b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000), False),
    "hidden": (".v{}.mkv", b"anything", False),
    "unfinished downloads": ("v{}.mp4.crdownload", b"\0\0\0\x18ftypmp42", False),
    "folders": ("v{}.mp4/", b"", False),
    "empty": ("v{}.mp4", b"", True),
    "text": ("v{}.avi", b"<html>404 Not Found</html>", True),
    "random bytes": ("v{}.webm", bytes(range(256)) * 20, True),
    "cut": ("v{}.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\1\0\0mdat", True),
}


@pytest.mark.promise(3)
@pytest.mark.parametrize(("name", "content", "is_row"), JUNK.values(), ids=list(JUNK))
def test_files_that_are_no_videos_never_stop_a_run(folder, name, content, is_row):
    names = [name.format(f"{number:02}") for number in range(24)]
    for junk in names:
        (folder / junk).mkdir() if junk.endswith("/") else (folder / junk).write_bytes(content)
    report = run(folder)
    assert sorted(report.done) == sorted(SECONDS)
    assert [row.status for row in report.failed] == ["failed"] * (24 if is_row else 0)
    assert list(report.left_out) == ([] if is_row else [junk.rstrip("/") for junk in names])
    assert report.exit_code == (1 if is_row else 0)
    assert is_row or f"24 files with names of videos are left out: {names[0].rstrip('/')}," in "\n".join(report.messages())


@pytest.mark.promise(4)
def test_each_changed_or_missing_fingerprint_field_is_refused(finished, report_figure):
    cache = finished / "feats.h5"
    before, contents = contents_of(cache), CacheReader(cache).contents
    fields = dict(contents.fingerprint)
    for name, value in fields.items():
        for other in (fields | {name: f"not {value}"}, {field: fields[field] for field in fields if field != name}):
            with (
                pytest.raises(CacheError, match=rf"other settings \({name}: cache has .*, asked for (not |nothing)"),
                CacheWriter(cache, replace(contents, fingerprint=other), {}),
            ):
                pass
    assert contents_of(cache) == before
    report_figure(f"each of {len(fields)} fields of a fingerprint changed and removed, each refused by its name")


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ({"fps": 1.0}, "fps: cache has 2.0, asked for 1.0"),
        ({"precision": "bf16"}, "precision: cache has fp32, asked for bf16"),
    ],
)
@pytest.mark.promise(4)
def test_other_settings_are_refused_by_name(done, option, answer):
    before = contents_of(done.parent / "feats.h5")
    with pytest.raises(CacheError, match=answer):
        run(done, **option)
    assert contents_of(done.parent / "feats.h5") == before


@pytest.mark.promise(4)
def test_other_weights_are_refused_by_name(done):
    write_clip_weights(done / "clip", seed=1)
    with pytest.raises(CacheError, match=r"weights: cache has .*, asked for"):
        run(done)


@pytest.mark.promise(4)
def test_only_a_replaced_video_is_extracted_again(done):
    old = CacheReader(done.parent / "feats.h5").tokens("v_a").copy()
    stamp = (done / "v_a.mp4").stat()
    shutil.copy(done / "v_b_0.0_2.0.mp4", done / "v_a.mp4")
    os.utime(done / "v_a.mp4", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    report = run(done)
    assert report.done == ("v_a",) and len(report.skipped) == 2
    reader = CacheReader(done.parent / "feats.h5")
    assert reader.tokens("v_a").shape != old.shape
    np.testing.assert_allclose(reader.tokens("v_a").astype(np.float32), reader.tokens("v_b_0.0_2.0"), atol=4e-3)


def test_new_annotations_need_no_decoding(done):
    write_rows(done / "val.jsonl", [("something new", "v_a")])
    report = run(done)
    assert report.done == ()
    reader = CacheReader(done.parent / "feats.h5")
    assert reader.splits == ["test", "train", "val"]
    assert len(reader.words("something new").tokens) == 2


def test_a_deleted_video_leaves_the_index(done):
    (done / "v_a.mp4").unlink()
    (done / "test.jsonl").unlink()
    write_rows(done / "train.jsonl", [("a dog", "Ünder way")])
    run(done)
    assert sorted(CacheReader(done.parent / "feats.h5").video_ids) == ["v_b_0.0_2.0", "Ünder way"]


def test_a_query_too_long_for_clip_is_reported(folder):
    write_rows(folder / "test.jsonl", [("dog " * 40, "v_a")])
    assert run(folder).truncated == ("dog " * 40,)


def test_one_video_file_and_one_sentence_are_enough(world, tmp_path):
    rows = {"test": json.dumps({"qid": 0, "query": "a dog", "vid": "v_a", "duration": 3.0})}
    report = extract(world / "v_a.mp4", out=tmp_path / "one.h5", annotations=rows, device="cpu", workers=1)
    reader = CacheReader(report.cache)
    assert reader.video_ids == ["v_a"] and reader.splits == ["test"]


def test_annotations_above_a_folder_called_videos_are_found(folder):
    (folder / "videos").mkdir()
    for file in folder.glob("*.mp4"):
        file.rename(folder / "videos" / file.name)
    reports = [run(folder, out=folder / "a.h5"), run(folder / "videos", out=folder / "b.h5")]
    assert [sorted(report.done) for report in reports] == [sorted(SECONDS)] * 2


def test_options_win_over_the_settings_of_the_folder(folder):
    run(folder, fps=1.0)
    assert CacheReader(folder.parent / "feats.h5").fps == 1.0


def drop_annotations(folder: Path) -> None:
    for file in folder.glob("*.jsonl"):
        file.unlink()


def drop_videos(folder: Path) -> None:
    for file in folder.glob("*.mp4"):
        file.unlink()


def test_a_folder_without_annotations_gets_its_queries_later(folder, done):
    annotations = folder.parent / "annotations"
    annotations.mkdir()
    for file in folder.glob("*.jsonl"):
        file.rename(annotations / file.name)
    cache = folder.parent / "feats.h5"
    report = run(folder)
    assert sorted(report.done) == sorted(SECONDS) and report.exit_code == 0 and not report.queries
    assert report.messages()[-2:] == [
        "No annotations: expected train.jsonl, val.jsonl or test.jsonl next to the videos, or --annotations.",
        f"{cache} has no queries yet. costl cache add-queries {cache} --annotations train.jsonl adds them.",
    ]
    assert CacheReader(cache).splits == [] and CacheReader(cache).word_table().counts()["queries"] == 0
    with pytest.raises(UsageError, match="has no queries yet"):
        read_queries(CacheReader(cache), "train")
    assert verify(cache).exit_code == 0
    assert inspect_cache(cache).facts["annotations"] == {}
    before = contents_of(cache)
    assert run(folder).done == () and contents_of(cache) == before
    unpack(pack(cache, out=folder.parent / "packed.h5"), out=folder.parent / "unpacked.h5")
    assert verify(folder.parent / "packed.h5").exit_code == verify(folder.parent / "unpacked.h5").exit_code == 0
    assert add_queries(cache, annotations).exit_code == 0
    annotated = CacheReader(done.parent / "feats.h5")
    assert {split: CacheReader(cache).annotations(split) for split in ("test", "train")} == {
        split: annotated.annotations(split) for split in annotated.splits
    }
    assert contents_of(cache).keys() == contents_of(annotated.path).keys()
    assert len(CacheReader(cache).word_table()) == len(annotated.word_table()) == 3
    before = contents_of(cache)
    again = run(folder)
    assert again.queries and again.dropped == () and contents_of(cache) == before, "the added queries stay"
    (folder / "v_a.mp4").unlink()
    with pytest.raises(UsageError, match=r"The annotations of \S*feats\.h5 name 1 videos that are not here: v_a"):
        run(folder)


UNREAD = ["rows.json", "labels.csv", "highlight_train_release.jsonl", "dev.jsonl", "charades.tsv", "A.CSV"]


@pytest.mark.parametrize("name", UNREAD)
def test_files_that_may_be_annotations_are_named_before_the_work(folder, name):
    drop_annotations(folder)
    (folder / name).write_text('{"query": "a dog"}')
    for other in ("readme.txt", "._train.json", "objects.jsonl"):
        (folder / other).write_text("{}")
    early: list[str] = []
    report = run(folder, progress=lambda event: early.append(event.message) if event.stage == "load" else None)
    (named,) = [message for message in report.messages() if message.startswith(f"Not read: {name}.")]
    assert any(named in message and "No annotations: expected train.jsonl" in message for message in early)


@pytest.mark.parametrize(
    ("change", "options", "answer"),
    [
        (drop_annotations, {"annotations": Path()}, "no annotations"),
        (drop_videos, {}, "no videos"),
        (lambda folder: (folder / "v_a.mp4").unlink(), {}, "1 videos that are not here: v_a"),
        (lambda folder: (folder / "costl.yaml").write_text("extract: {fsp: 1}"), {}, "Did you mean fps"),
        (lambda folder: None, {"fps": 0.0}, "fps is 0.0"),
        (lambda folder: None, {"model": "ViT-B32", "weights": "openai"}, "Did you mean ViT-B-32"),
        (lambda folder: None, {"workers": 0}, "workers is 0"),
        (lambda folder: None, {"device": "cpu,cuda:99"}, "device 'cuda:99' cannot be used here"),
        (lambda folder: None, {"device": "cpu,"}, "device '' cannot be used here"),
        (lambda folder: None, {"precision": "fp8"}, "precision 'fp8': expected one of fp32, fp16, bf16"),
        (lambda folder: None, {"annotations": Path("nowhere")}, "nowhere: no annotations"),
    ],
    ids=[
        *("annotations", "videos", "unknown video", "setting", "fps", "model", "workers"),
        *("device", "no device", "precision", "path"),
    ],
)
def test_a_wrong_input_is_refused_before_anything_is_written(folder, change, options, answer):
    change(folder)
    with pytest.raises(UsageError, match=answer):
        run(folder, **options)
    assert not (folder.parent / "feats.h5").exists() and not (folder.parent / "feats.h5.parts").exists()


@pytest.mark.promise(5)
def test_a_second_run_at_the_same_time_is_refused_at_once(done, monkeypatch):
    reader = CacheReader(done.parent / "feats.h5")
    monkeypatch.setattr(extract_module, "_load_encoders", lambda *_, **__: pytest.fail("loaded CLIP first"))
    with CacheWriter(reader.path, reader.contents, {}), pytest.raises(CacheError, match="another costl extract"):
        run(done)


def test_a_full_disk_stops_the_run_and_keeps_finished_videos(folder, monkeypatch):
    saved = []
    store = CacheWriter.store

    def full(self, video_id, **features):
        if saved:
            raise CacheError("feats.h5.parts: cannot be written (No space left on device).")
        saved.append(video_id)
        return store(self, video_id, **features)

    monkeypatch.setattr(CacheWriter, "store", full)
    with pytest.raises(CacheError, match="No space left"):
        run(folder)
    monkeypatch.undo()
    assert len(CacheReader(folder.parent / "feats.h5").video_ids) == 1
    assert len(run(folder).skipped) == 1


def test_missing_annotated_videos_become_rows_if_allowed(done):
    write_rows(done / "test.jsonl", [("a cat runs", "gone/../1"), ("a dog", "v_a"), ("a bird", "gone/../1")])
    with pytest.raises(UsageError, match=r"1 videos that are not here: gone/\.\./1.*--allow-missing-videos"):
        run(done)
    report = run(done, allow_missing_videos=True)
    assert report.exit_code == 1 and [(row.name, row.status) for row in report.failed] == [("gone/../1", "missing")]
    reader = CacheReader(report.cache)
    (row,) = (row for row in reader.rows if not row.ok)
    assert (row.name, row.reason) == ("gone/../1", "annotated, but its video is not there.") and "/" not in row.id
    assert sorted(reader.video_ids) == sorted(SECONDS) and reader.words("a bird") is not None
    make_video(done / "late.mp4", frame_times(50))
    write_rows(done / "test.jsonl", [("a cat runs", "late")])
    assert run(done).done == ("late",) and all(row.ok for row in CacheReader(report.cache).rows)


def test_settings_of_the_annotations_count_and_options_win(folder):
    prepared = folder.parent / "prepared"
    prepared.mkdir()
    shutil.copy(folder / "train.jsonl", prepared / "train.jsonl")
    without = run(folder, annotations=prepared)
    assert (CacheReader(without.cache).fps, CacheReader(without.cache).settings) == (2.0, {"epochs": 7})
    (prepared / "costl.yaml").write_text("extract: {weights: ../world/clip, fps: 1}\ntrain: {train: {epochs: 9}}\n")
    with_settings = CacheReader(run(folder, annotations=prepared, out=folder.parent / "with_settings.h5").cache)
    assert (with_settings.fps, with_settings.settings, with_settings.splits) == (1.0, {"train": {"epochs": 9}}, ["train"])
    with_option = CacheReader(run(folder, annotations=prepared, out=folder.parent / "with_option.h5", fps=4).cache)
    assert (with_option.fps, with_option.settings) == (4.0, {"train": {"epochs": 9}})


def test_times_that_do_not_fit_the_video_are_listed_after_decoding(done):
    row = {"qid": 5, "query": "a dog", "vid": "v_a.mp4", "duration": 9.0, "relevant_windows": [[1, 2], [6, 8]]}
    path = done / "train.jsonl"
    path.write_text(json.dumps(row))
    report = run(done)
    assert (report.exit_code, report.done, report.failed) == (1, (), ())
    assert report.late == (
        "train.jsonl: 1 queries have a moment after the end of their video: query 5 [6.0, 8.0] in 'v_a' (3 s long, 9 by its "
        "annotation). Correct these rows or take them out, and run the same costl extract again.",
    )
    assert set(report.notes) | set(report.late) < set(report.messages())
    assert ["such as 'v_a.mp4': read as 'v_a'" in report.notes[0], "v_a by 6.0 s" in report.notes[1]] == [True, True]
    path.write_text(json.dumps(row | {"vid": "v_a", "duration": 3.0, "relevant_windows": [[1, 3.4]]}))
    report = run(done)
    assert report.exit_code == 0 and report.late == () and "query 5 by 0.4 s" in report.notes[0]
