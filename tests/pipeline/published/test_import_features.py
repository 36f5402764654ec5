"""Published features become an ordinary cache; whatever does not fit is found before anything is written."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from published_world import JOINT, WIDE, Published, publish_world, save

from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError, UsageError, VideoError
from costl.pipeline.published import import_features as importing
from costl.pipeline.published.arrays import look_at
from costl.pipeline.published.import_features import import_features
from costl.pipeline.published.survey import tolerance

SMALL = {"train": 6, "val": 2, "test": 2}
VID = "train_0"


@pytest.fixture
def published(tmp_path) -> Published:
    return publish_world(tmp_path, counts=SMALL)


def rows(published: Published, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (published.annotations / f"{split}.jsonl").read_text().splitlines()]


def annotate(published: Published, changed: list[dict], split: str = "train") -> None:
    (published.annotations / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))


def load(published: Published, stream: str, name: str = VID) -> np.ndarray:
    return np.load(published.frames(stream, name))["features"]


def put(published: Published, stream: str, name: str, frames: np.ndarray) -> None:
    save(published.frames(stream, name), features=frames)


def normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


# What goes in comes out


def test_streams_are_normed_and_put_side_by_side_as_the_one_token_of_a_frame(published):
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    reader = CacheReader(report.cache)
    assert (report.exit_code, len(report.done), report.failed) == (0, 10, ())
    assert reader.patch_grid == (0, 0) and reader.settings == {"spatial": {"steps": 0}}
    assert reader.splits == ["test", "train", "val"]
    expected = np.concatenate([normed(load(published, "slow")), normed(load(published, "clip"))], axis=1)
    found = reader.tokens(VID)
    assert found.shape == (len(expected), 1, WIDE + JOINT)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-3)
    grid = reader.grid(VID)
    assert grid.clips == len(expected) and grid.duration_s == rows(published)[0]["duration"]
    np.testing.assert_array_equal(reader.times_s(VID), 2.0 * np.arange(len(expected)) + 1)
    for video_id in reader.video_ids:
        reader.verify(video_id)


def test_without_normalising_values_stay_as_they_are(published):
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5", normalize=False)
    expected = np.concatenate([load(published, "slow"), load(published, "clip")], axis=1)
    np.testing.assert_allclose(CacheReader(report.cache).tokens(VID)[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_a_plain_npy_will_do_and_a_row_of_zeros_stays_zero(published):
    frames = load(published, "clip")
    frames[2] = 0
    published.frames("clip", VID).unlink()
    np.save(published.streams["clip"] / f"{VID}.npy", frames.astype(np.float64))
    found = CacheReader(import_features(**published.arguments(), out=published.text.parent / "f.h5").cache).tokens(VID)
    lengths = np.linalg.norm(frames, axis=1)
    lengths[2] = 1
    np.testing.assert_allclose(found[:, 0, WIDE:], frames / lengths[:, None], atol=1e-3)


def test_words_have_an_empty_first_half_and_the_sentence_length_one(published):
    reader = CacheReader(import_features(**published.arguments(), out=published.text.parent / "feats.h5").cache)
    row = rows(published)[3]
    text, words = np.load(published.text / f"qid{row['qid']}.npz"), reader.words(row["query"])
    assert words.tokens.shape == (4, 2 * JOINT) and not words.tokens[:, :JOINT].any()
    np.testing.assert_allclose(words.tokens[:, JOINT:], text["last_hidden_state"], atol=1e-3)
    np.testing.assert_allclose(words.sentence, text["pooler_output"] / 7, atol=1e-6)


@pytest.mark.parametrize("layout", ["features", "npy", "no qid before the number"])
def test_other_layouts_of_text_are_read(published, layout):
    for path in list(published.text.iterdir()):
        words, qid = np.load(path)["last_hidden_state"], path.stem.removeprefix("qid")
        path.unlink()
        if layout == "npy":
            np.save(published.text / f"qid{qid}.npy", words)
        elif layout == "features":
            save(published.text / f"qid{qid}.npz", features=words)
        else:
            save(published.text / f"{qid}.npz", last_hidden_state=words, pooler_output=words[:1])
    reader = CacheReader(import_features(**published.arguments(), out=published.text.parent / "feats.h5").cache)
    found = reader.words(rows(published)[0]["query"])
    assert found.tokens.shape == (4, 2 * JOINT) and np.linalg.norm(found.sentence) == pytest.approx(1, abs=1e-6)


def test_the_named_stream_is_the_joint_space_and_without_a_name_nothing_is(published):
    here = published.text.parent
    known = CacheReader(import_features(**published.arguments(), out=here / "known.h5", joint="clip").cache)
    frames, row = normed(load(published, "clip")), rows(published)[0]
    sentence = np.load(published.text / f"qid{row['qid']}.npz")["pooler_output"] / 7
    cosine = known.joint.project(known.tokens(VID)[:, 0]) @ known.words(row["query"]).sentence
    assert known.joint.known and not known.joint.normed
    np.testing.assert_allclose(cosine, frames @ sentence, atol=2e-3)
    unknown = CacheReader(import_features(**published.arguments(), out=here / "unknown.h5").cache)
    assert not unknown.joint.known and not unknown.joint.project(unknown.tokens(VID)[:, 0]).any()


def test_what_the_folder_asks_of_training_is_kept_and_its_fps_taken(tmp_path):
    published = publish_world(tmp_path, fps=1.0, counts=SMALL)
    settings = "extract: {fps: 1}\ntrain:\n  train: {epochs: 7}\n  spatial: {top_k: 3, steps: 2}\n"
    (published.annotations / "costl.yaml").write_text(settings)
    reader = CacheReader(import_features(**published.arguments(), out=tmp_path / "feats.h5").cache)
    assert reader.fps == 1 and reader.settings == {"train": {"epochs": 7}, "spatial": {"top_k": 3, "steps": 0}}


# Lengths


def test_a_clip_or_two_too_many_are_cut_and_too_few_filled_with_the_last(published):
    long, short = load(published, "clip", "train_1"), load(published, "slow", "train_2")
    put(published, "clip", "train_1", np.concatenate([long, long[:1]]))
    put(published, "slow", "train_2", short[:-1])
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5", normalize=False)
    reader = CacheReader(report.cache)
    assert (report.cut, report.padded) == (1, 1)
    np.testing.assert_allclose(reader.tokens("train_1")[:, 0, WIDE:], long, rtol=1e-3, atol=1e-4)
    filled = np.concatenate([short[:-1], short[-2:-1]])
    np.testing.assert_allclose(reader.tokens("train_2")[:, 0, :WIDE], filled, rtol=1e-3)


@pytest.mark.parametrize(("clips", "expected"), [(1, 1), (10, 1), (19, 1), (20, 2), (75, 2), (3000, 2)])
def test_how_far_a_length_may_be_off(clips, expected):
    assert tolerance(clips) == expected


@pytest.mark.parametrize(("fps", "told"), [(1.0, "1"), (0.25, "0.25"), (6.0, "6"), (1 / 3, "0.333333"), (0.3, "0.3")])
def test_features_of_another_rate_are_found_and_the_right_one_is_named(tmp_path, fps, told):
    published = publish_world(tmp_path, fps=fps, counts=SMALL)
    with pytest.raises(UsageError, match=rf"look like {told} a second: pass --fps {told}\.$") as refused:
        import_features(**published.arguments(), out=tmp_path / "feats.h5")
    assert "At 0.5 clips a second" in str(refused.value) and not (tmp_path / "feats.h5").exists()
    assert import_features(**published.arguments(), out=tmp_path / "feats.h5", fps=float(told)).exit_code == 0


def test_streams_of_different_rates_are_told_apart(published):
    for name in [path.stem for path in published.streams["clip"].iterdir()]:
        put(published, "clip", name, np.repeat(load(published, "clip", name), 2, axis=0))
    with pytest.raises(UsageError, match=r"different rates \(slow 0.5, clip 1 a second\)"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_one_video_of_another_length_is_named(published):
    put(published, "clip", VID, load(published, "clip")[:8])
    with pytest.raises(UsageError, match=rf"1 of 10 videos .*: {VID} \(clip: 8 for .* Check that features and annot"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


# What cannot be used


def objects(path: Path) -> None:
    np.savez(path, features=np.array([{"a": 1}], dtype=object))


def with_header(path: Path, header: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", header)


def claiming(rows: int) -> bytes:
    """The beginning of an array of so many rows, without its values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, 16)})
    return file.getvalue()


BAD_FRAMES = {
    "objects": (objects, "holds object, expected numbers"),
    "text": (lambda path: np.savez(path, features=np.array([["a"]])), "holds <U1, expected numbers"),
    "one axis": (lambda path: save(path, features=np.zeros(20)), r"shape \(20,\), expected \(clips, channels\)"),
    "three axes": (lambda path: save(path, features=np.zeros((20, 4, 3))), "expected .clips, channels."),
    "nothing": (lambda path: save(path, features=np.zeros((0, JOINT))), "expected .clips, channels."),
    "another width": (lambda path: save(path, features=np.zeros((20, 5))), "5 channels, the others have 16"),
    "another key": (lambda path: save(path, feats=np.zeros((20, 5)), x=np.zeros(1)), "no 'features', it has feats, x"),
    "an empty file": (lambda path: path.write_bytes(b""), "cannot be read"),
    "no zip": (lambda path: path.write_bytes(b"PK\x03\x04" + b"?" * 100), "cannot be read"),
    "no array": (lambda path: with_header(path, b"?" * 50), "cannot be read"),
    "a foreign version": (lambda path: with_header(path, b"\x93NUMPY\x09\x00" + b" " * 50), "holds object"),
    "a shape larger than its file": (lambda path: with_header(path, claiming(1 << 40)), "cannot hold more"),
    "zeros deflated a thousand times": (
        lambda path: np.savez_compressed(path, features=np.zeros((1 << 20, 4))),
        "cannot hold",
    ),
    "code": (lambda path: with_header(path, b"\x93NUMPY\x01\x00\x10\x00__import__('os')"), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_files_that_cannot_be_used_are_named_before_anything_is_written(published, name):
    spoil, told = BAD_FRAMES[name]
    spoil(published.frames("clip", VID))
    with pytest.raises(UsageError, match=rf"^1 of the files of features cannot be used: .*{VID}\.npz.*{told}"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    assert not list(published.text.parent.glob("feats.h5*"))


BAD_TEXT = {
    "no words": (lambda path: save(path, pooler_output=np.ones(JOINT)), "no 'last_hidden_state' or 'features', it has"),
    "no numbers": (
        lambda path: np.savez(path, last_hidden_state=np.full((2, JOINT), np.nan)),
        "32 values are no finite",
    ),
    "one axis": (lambda path: save(path, last_hidden_state=np.ones(JOINT)), r"expected \(words, channels\)"),
    "two sentences": (
        lambda path: save(path, last_hidden_state=np.ones((2, JOINT)), pooler_output=np.ones((2, JOINT))),
        r"expected \(channels,\)",
    ),
    "zeros": (
        lambda path: save(path, last_hidden_state=np.ones((2, JOINT)), pooler_output=np.zeros(JOINT)),
        "the sentence is all zeros",
    ),
    "too large": (
        lambda path: save(path, last_hidden_state=np.full((2, JOINT), 1e6), pooler_output=np.ones(JOINT)),
        "more than float16 can",
    ),
    "objects": (lambda path: np.savez(path, last_hidden_state=np.array([None])), "holds object"),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_text_that_cannot_be_used_is_named_before_anything_is_written(published, name):
    spoil, told = BAD_TEXT[name]
    spoil(published.text / "qid0.npz")
    with pytest.raises(UsageError, match=rf"^1 of the files of text cannot be used: .*qid0\.npz.*{told}"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    assert not list(published.text.parent.glob("feats.h5*"))


def test_text_of_two_layouts_is_refused(published):
    save(published.text / "qid0.npz", features=np.ones((3, JOINT)))
    with pytest.raises(UsageError, match=r"not of one kind \(qid0.npz has features 16, mean of words 16; qid1.npz has"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_a_joint_space_needs_a_sentence_of_its_own_and_of_the_same_width(published):
    out = published.text.parent / "feats.h5"
    with pytest.raises(UsageError, match="--joint slow: its frames have 12 channels and the sentences 16"):
        import_features(**published.arguments(), out=out, joint="slow")
    with pytest.raises(UsageError, match="--joint clap: no such stream, only slow, clip"):
        import_features(**published.arguments(), out=out, joint="clap")
    save(published.text / "qid0.npz", features=np.ones((3, JOINT)))
    with pytest.raises(UsageError, match="no 'pooler_output', which --joint clip compares"):
        import_features(**published.arguments(), out=out, joint="clip")


def test_a_query_without_a_file_is_named(published):
    (published.text / "qid3.npz").unlink()
    with pytest.raises(UsageError, match="1 of 10 queries have no file: qid3"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_rows_that_disagree_about_a_duration_are_refused(published):
    first = rows(published)[0]
    annotate(published, [*rows(published), first | {"qid": 99, "duration": first["duration"] + 3}])
    with pytest.raises(UsageError, match=f"disagree about 1 videos: {VID} lasts"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_missing_videos_are_counted_and_become_rows_where_that_is_allowed(published):
    published.frames("clip", VID).unlink()
    out = published.text.parent / "feats.h5"
    with pytest.raises(
        UsageError, match=rf"1 of 10 annotated videos have no features: {VID} \(clip\)\. Fetch them, or p"
    ):
        import_features(**published.arguments(), out=out)
    report = import_features(**published.arguments(), out=out, allow_missing=True)
    assert report.exit_code == 1 and [(row.name, row.status, row.reason) for row in report.failed] == [
        (VID, "missing", "no file of clip.")
    ]
    assert VID not in CacheReader(out).video_ids and len(CacheReader(out).rows) == 10


def test_a_wrong_folder_is_refused_even_where_videos_may_be_missing(published):
    streams = published.streams | {"clip": published.text}
    with pytest.raises(
        UsageError, match=r"10 of 10 annotated videos .* Check the folders .*10 files such as qid0\.npz"
    ):
        import_features(published.annotations, features=streams, text=published.text, allow_missing=True)
    with pytest.raises(UsageError, match="is no folder"):
        import_features(published.annotations, features={"clip": Path("nowhere")}, text=published.text)


def test_values_that_are_no_numbers_make_a_failed_row(published):
    frames = load(published, "clip")
    frames[1, 2] = np.inf
    put(published, "clip", VID, frames)
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    (row,) = report.failed
    assert report.exit_code == 1 and row.name == VID and "clip/train_0.npz: 1 values are no finite number" in row.reason
    assert len(CacheReader(report.cache).video_ids) == 9


def test_damage_behind_the_header_is_found_when_the_numbers_are_read(tmp_path):
    save(tmp_path / "a.npz", features=np.ones((2000, JOINT)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60_000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.npz: damaged \(Bad CRC"):
        look_at(tmp_path / "a.npz")["features"].read()
    np.save(tmp_path / "b.npy", np.ones((2000, JOINT)))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-1])
    with pytest.raises(VideoError, match=r"b\.npy: damaged"):
        look_at(tmp_path / "b.npy")["features"].read()


def test_many_failures_in_a_row_stop_the_import(published, monkeypatch):
    monkeypatch.setattr(importing, "FAILURES_IN_A_ROW", 3)
    for name in [path.stem for path in published.streams["clip"].iterdir()]:
        put(published, "clip", name, np.full_like(load(published, "clip", name), np.nan))
    with pytest.raises(CostlError, match="3 videos in a row failed"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


# Again


def test_a_second_import_writes_only_what_is_new_or_has_changed(published):
    out = published.text.parent / "feats.h5"
    frames = published.frames("clip", "test_0")
    aside = frames.rename(frames.with_suffix(".aside"))
    assert len(import_features(**published.arguments(), out=out, allow_missing=True).done) == 9
    aside.rename(frames)
    put(published, "slow", VID, load(published, "slow") + 1)
    row = rows(published)[1]
    annotate(published, [*rows(published)[:1], row | {"duration": row["duration"] + 1}, *rows(published)[2:]])
    before = (parts_folder(out) / "train_2.h5").stat().st_mtime_ns
    again = import_features(**published.arguments(), out=out)
    assert sorted(again.done) == ["test_0", VID, "train_1"] and len(again.skipped) == 7 and again.exit_code == 0
    assert (parts_folder(out) / "train_2.h5").stat().st_mtime_ns == before
    assert CacheReader(out).grid("train_1").duration_s == row["duration"] + 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalize": False}, "normalize: cache has true, asked for false"),
        ({"joint": "clip"}, "joint: cache has none, asked for clip"),
        ({"features": ["clip", "slow"]}, "streams: cache has slow 12, clip 16, asked for clip 16, slow 12"),
        ({"features": ["clip"]}, "streams: cache has slow 12, clip 16, asked for clip 16"),
    ],
)
def test_another_way_of_importing_into_the_same_cache_is_refused_by_name(published, changes, told):
    out = published.text.parent / "feats.h5"
    import_features(**published.arguments(), out=out)
    if "features" in changes:
        changes = {"features": {name: published.streams[name] for name in changes["features"]}}
    with pytest.raises(CacheError, match=told):
        import_features(**{**published.arguments(), **changes}, out=out)
