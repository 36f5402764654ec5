"""Published features become an ordinary cache. Files that do not fit are refused before anything is written."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from published_world import CLIP_WIDTH, SLOW_WIDTH, Published, publish_world, save

from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.published.arrays import find_file, read_headers
from costl.pipeline.published.checks import length_tolerance
from costl.pipeline.published.import_features import import_features

SMALL = {"train": 6, "val": 2, "test": 2}
VID = "train_0"


@pytest.fixture
def published(tmp_path) -> Published:
    return publish_world(tmp_path, counts=SMALL)


def read_rows(published: Published, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (published.annotations / f"{split}.jsonl").read_text().splitlines()]


def annotate(published: Published, changed: list[dict], split: str = "train") -> None:
    (published.annotations / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))


def load_frames(published: Published, stream: str, name: str = VID) -> np.ndarray:
    return np.load(published.frames(stream, name))["features"]


def write_frames(published: Published, stream: str, name: str, frames: np.ndarray) -> None:
    save(published.frames(stream, name), features=frames)


def normalized(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


# Stored values


def test_normalised_streams_are_concatenated_into_one_token_per_frame(published):
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    reader = CacheReader(report.cache)
    assert (report.exit_code, len(report.done), report.failed) == (0, 10, ())
    assert reader.patch_grid == (0, 0) and reader.settings == {"spatial": {"steps": 0}}
    assert reader.splits == ["test", "train", "val"]
    expected = np.concatenate(
        [normalized(load_frames(published, "slow")), normalized(load_frames(published, "clip"))], axis=1
    )
    tokens = reader.tokens(VID)
    assert tokens.shape == (len(expected), 1, SLOW_WIDTH + CLIP_WIDTH)
    np.testing.assert_allclose(tokens[:, 0], expected, atol=1e-3)
    grid = reader.grid(VID)
    assert grid.clips == len(expected) and grid.duration_s == read_rows(published)[0]["duration"]
    np.testing.assert_array_equal(reader.times_s(VID), 2.0 * np.arange(len(expected)) + 1)
    for video_id in reader.video_ids:
        reader.verify(video_id)


def test_features_may_be_in_the_folders_of_their_videos(published):
    for stream in published.arguments()["features"]:
        path = published.frames(stream, VID)
        (path.parent / "2026").mkdir()
        path.rename(path.parent / "2026" / "garden.npz")
    annotate(published, [row | ({"vid": "2026/garden"} if row["vid"] == VID else {}) for row in read_rows(published)])
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    assert report.failed == () and "2026/garden" in report.done
    assert len(CacheReader(report.cache).tokens("2026/garden")) and (parts_folder(report.cache) / "2026%2Fgarden.h5").exists()


@pytest.mark.parametrize("name", ["../out", "2026/../../out", "/out", "./a", "2026//a", "2026/", "", "a\0b"])
def test_a_name_that_leads_out_of_the_folder_has_no_features(tmp_path, name):
    for place in (tmp_path, tmp_path / "in", tmp_path / "in" / "2026"):
        place.mkdir(exist_ok=True)
        for stem in ("out", "a", ""):
            (place / f"{stem}.npz").touch()
    assert find_file(tmp_path / "in", name) is None and find_file(tmp_path / "in", "2026/a") is not None
    assert find_file(tmp_path / "in", str(tmp_path / "out")) is None


def test_without_normalize_values_are_unchanged(published):
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5", normalize=False)
    expected = np.concatenate([load_frames(published, "slow"), load_frames(published, "clip")], axis=1)
    np.testing.assert_allclose(CacheReader(report.cache).tokens(VID)[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_npy_files_are_read_and_a_row_of_zeros_stays_zero(published):
    frames = load_frames(published, "clip")
    frames[2] = 0
    published.frames("clip", VID).unlink()
    np.save(published.streams["clip"] / f"{VID}.npy", frames.astype(np.float64))
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    tokens = CacheReader(report.cache).tokens(VID)
    lengths = np.linalg.norm(frames, axis=1)
    lengths[2] = 1
    np.testing.assert_allclose(tokens[:, 0, SLOW_WIDTH:], frames / lengths[:, None], atol=1e-3)


def test_words_have_a_zero_first_half_and_the_sentence_has_length_one(published):
    reader = CacheReader(import_features(**published.arguments(), out=published.text.parent / "feats.h5").cache)
    row = read_rows(published)[3]
    text, words = np.load(published.text / f"qid{row['qid']}.npz"), reader.words(row["query"])
    assert words.tokens.shape == (4, 2 * CLIP_WIDTH) and not words.tokens[:, :CLIP_WIDTH].any()
    np.testing.assert_allclose(words.tokens[:, CLIP_WIDTH:], text["last_hidden_state"], atol=1e-3)
    np.testing.assert_allclose(words.sentence, text["pooler_output"] / 7, atol=1e-6)


@pytest.mark.parametrize("layout", ["features", "npy", "no qid before the number"])
def test_other_layouts_of_text_features_are_read(published, layout):
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
    sentence = reader.words(read_rows(published)[0]["query"])
    assert sentence.tokens.shape == (4, 2 * CLIP_WIDTH) and np.linalg.norm(sentence.sentence) == pytest.approx(
        1, abs=1e-6
    )


def test_only_a_named_stream_gives_a_joint_space(published):
    folder = published.text.parent
    with_joint = CacheReader(import_features(**published.arguments(), out=folder / "joint.h5", joint="clip").cache)
    frames, row = normalized(load_frames(published, "clip")), read_rows(published)[0]
    sentence = np.load(published.text / f"qid{row['qid']}.npz")["pooler_output"] / 7
    cosine = with_joint.joint_vectors(VID) @ with_joint.words(row["query"]).sentence
    assert with_joint.joint.is_known
    np.testing.assert_allclose(cosine, frames @ sentence, atol=2e-3)
    without_joint = CacheReader(import_features(**published.arguments(), out=folder / "no_joint.h5").cache)
    assert not without_joint.joint.is_known
    assert not without_joint.joint_vectors(VID).any()


def test_training_settings_and_fps_of_the_folder_are_used(tmp_path):
    published = publish_world(tmp_path, fps=1.0, counts=SMALL)
    settings = "extract: {fps: 1}\ntrain:\n  train: {epochs: 7}\n  spatial: {top_k: 3, steps: 2}\n"
    (published.annotations / "costl.yaml").write_text(settings)
    reader = CacheReader(import_features(**published.arguments(), out=tmp_path / "feats.h5").cache)
    assert reader.fps == 1 and reader.settings == {"train": {"epochs": 7}, "spatial": {"top_k": 3, "steps": 0}}


# Lengths


def test_long_streams_are_cut_and_short_ones_padded_with_the_last_row(published):
    long, short = load_frames(published, "clip", "train_1"), load_frames(published, "slow", "train_2")
    write_frames(published, "clip", "train_1", np.concatenate([long, long[:1]]))
    write_frames(published, "slow", "train_2", short[:-1])
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5", normalize=False)
    reader = CacheReader(report.cache)
    assert report.uneven == 2
    np.testing.assert_allclose(reader.tokens("train_1")[:, 0, SLOW_WIDTH:], long, rtol=1e-3, atol=1e-4)
    filled = np.concatenate([short[:-1], short[-2:-1]])
    np.testing.assert_allclose(reader.tokens("train_2")[:, 0, :SLOW_WIDTH], filled, rtol=1e-3)


@pytest.mark.parametrize(("clips", "expected"), [(1, 1), (10, 1), (19, 1), (20, 2), (75, 2), (3000, 2)])
def test_the_tolerance_of_lengths_is_a_tenth_of_the_clips_up_to_two(clips, expected):
    assert length_tolerance(clips) == expected


@pytest.mark.parametrize(("fps", "rate"), [(1.0, "1"), (0.25, "0.25"), (6.0, "6"), (1 / 3, "0.333")])
def test_for_features_of_another_rate_the_right_rate_is_suggested(tmp_path, fps, rate):
    published = publish_world(tmp_path, fps=fps, counts=SMALL)
    with pytest.raises(UsageError, match=rf"^10 feature files .* s are {rate} a second, expected .* --fps") as refused:
        import_features(**published.arguments(), out=tmp_path / "feats.h5")
    assert "And 5 more" in str(refused.value) and not (tmp_path / "feats.h5").exists()
    assert import_features(**published.arguments(), out=tmp_path / "feats.h5", fps=float(rate)).exit_code == 0


def test_a_stream_of_another_rate_is_refused_with_its_rate(published):
    for name in [path.stem for path in published.streams["clip"].iterdir()]:
        write_frames(published, "clip", name, np.repeat(load_frames(published, "clip", name), 2, axis=0))
    with pytest.raises(UsageError, match=r"10 feature files .*clip/.* are 1 a second"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_one_video_of_another_length_is_named(published):
    write_frames(published, "clip", VID, load_frames(published, "clip")[:8])
    with pytest.raises(UsageError, match=rf"1 feature files .*clip/{VID}.npz: 8 features for "):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


# Unusable files


def save_objects(path: Path) -> None:
    np.savez(path, features=np.array([{"a": 1}], dtype=object))


def save_header(path: Path, header: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", header)


def header_only(rows: int) -> bytes:
    """The header of an array of `rows` rows, without its values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, 16)})
    return file.getvalue()


UNUSABLE_FRAMES = {
    "objects": (save_objects, "holds object, expected numbers"),
    "text": (lambda path: np.savez(path, features=np.array([["a"]])), "holds <U1, expected numbers"),
    "one axis": (lambda path: save(path, features=np.zeros(20)), r"shape \(20,\), expected \(clips, channels\)"),
    "three axes": (lambda path: save(path, features=np.zeros((20, 4, 3))), "expected .clips, channels."),
    "nothing": (lambda path: save(path, features=np.zeros((0, CLIP_WIDTH))), "expected .clips, channels."),
    "another width": (lambda path: save(path, features=np.load(path)["features"][:, :5]), "5 channels, the others have 16"),
    "another key": (lambda path: save(path, feats=np.zeros((20, 5)), x=np.zeros(1)), "no 'features', it has feats, x"),
    "an empty file": (lambda path: path.write_bytes(b""), "cannot be read"),
    "not a zip file": (lambda path: path.write_bytes(b"PK\x03\x04" + b"?" * 100), "cannot be read"),
    "not an array": (lambda path: save_header(path, b"?" * 50), "cannot be read"),
    "an unknown version": (lambda path: save_header(path, b"\x93NUMPY\x09\x00" + b" " * 50), "cannot be read"),
    "a shape larger than its file": (lambda path: save_header(path, header_only(1 << 40)), "cannot hold more"),
    "zeros deflated a thousand times": (
        lambda path: np.savez_compressed(path, features=np.zeros((1 << 20, 4))),
        "cannot hold",
    ),
    "code": (lambda path: save_header(path, b"\x93NUMPY\x01\x00\x10\x00__import__('os')"), "cannot be read"),
}


@pytest.mark.parametrize("name", UNUSABLE_FRAMES)
def test_unusable_feature_files_are_refused_before_anything_is_written(published, name):
    corrupt, message = UNUSABLE_FRAMES[name]
    corrupt(published.frames("clip", VID))
    with pytest.raises(UsageError, match=rf"^1 feature files cannot be used: .*{VID}\.npz.*{message}"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    assert not list(published.text.parent.glob("feats.h5*"))


UNUSABLE_TEXT = {
    "no words": (
        lambda path: save(path, pooler_output=np.ones(CLIP_WIDTH)),
        "no 'last_hidden_state' or 'features', it has",
    ),
    "non-finite values": (
        lambda path: np.savez(path, last_hidden_state=np.full((2, CLIP_WIDTH), np.nan)),
        "32 values are not finite",
    ),
    "one axis": (lambda path: save(path, last_hidden_state=np.ones(CLIP_WIDTH)), r"expected \(words, channels\)"),
    "two sentences": (
        lambda path: save(path, last_hidden_state=np.ones((2, CLIP_WIDTH)), pooler_output=np.ones((2, CLIP_WIDTH))),
        r"expected \(channels,\)",
    ),
    "zeros": (
        lambda path: save(path, last_hidden_state=np.ones((2, CLIP_WIDTH)), pooler_output=np.zeros(CLIP_WIDTH)),
        "the sentence is all zeros",
    ),
    "too large": (
        lambda path: save(path, last_hidden_state=np.full((2, CLIP_WIDTH), 1e6), pooler_output=np.ones(CLIP_WIDTH)),
        "more than float16 can",
    ),
    "objects": (lambda path: np.savez(path, last_hidden_state=np.array([None])), "holds object"),
}


@pytest.mark.parametrize("name", UNUSABLE_TEXT)
def test_unusable_text_files_are_refused_before_anything_is_written(published, name):
    corrupt, message = UNUSABLE_TEXT[name]
    corrupt(published.text / "qid0.npz")
    with pytest.raises(UsageError, match=rf"^1 text files cannot be used: .*qid0\.npz.*{message}"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    assert not list(published.text.parent.glob("feats.h5*"))


def test_text_files_of_two_layouts_are_refused(published):
    save(published.text / "qid0.npz", features=np.ones((3, CLIP_WIDTH)))
    with pytest.raises(
        UsageError, match=r"differ in layout \(qid0.npz has features 16, mean of words 16; qid1.npz has"
    ):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_joint_needs_a_known_stream_and_sentences_of_its_width(published):
    out = published.text.parent / "feats.h5"
    with pytest.raises(UsageError, match="--joint slow: its frames have 12 channels and the sentences 16"):
        import_features(**published.arguments(), out=out, joint="slow")
    with pytest.raises(UsageError, match="--joint clap: no such stream, only slow, clip"):
        import_features(**published.arguments(), out=out, joint="clap")
    save(published.text / "qid0.npz", features=np.ones((3, CLIP_WIDTH)))
    with pytest.raises(UsageError, match="no 'pooler_output', which --joint clip compares"):
        import_features(**published.arguments(), out=out, joint="clip")


def test_a_query_without_a_file_is_named(published):
    (published.text / "qid3.npz").unlink()
    with pytest.raises(UsageError, match=r"^1 text files cannot be used: .*text: no qid3\.npz or \.npy\."):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


@pytest.mark.parametrize("qid", [0, "0"])
def test_two_queries_with_one_qid_are_refused(published, qid):
    """There is one file of text features for both."""
    first, *_ = read_rows(published)
    annotate(published, [*read_rows(published), first | {"qid": 99}])  # one query with two qids is no problem
    import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    (published.annotations / "val.jsonl").write_text(json.dumps(first | {"qid": qid, "query": "another"}))
    with pytest.raises(UsageError, match=r"qid 0 belongs to two queries, .* and 'another'"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_rows_that_disagree_about_a_duration_are_refused(published):
    first = read_rows(published)[0]
    annotate(published, [*read_rows(published), first | {"qid": 99, "duration": first["duration"] + 3}])
    with pytest.raises(UsageError, match=f"disagree about {VID}: it lasts"):
        import_features(**published.arguments(), out=published.text.parent / "feats.h5")


def test_missing_videos_are_counted_and_become_rows_if_allowed(published):
    published.frames("clip", VID).unlink()
    out = published.text.parent / "feats.h5"
    with pytest.raises(
        UsageError, match=rf"1 of 10 annotated videos have no features: {VID} \(clip\)\. Download them, or p"
    ):
        import_features(**published.arguments(), out=out)
    report = import_features(**published.arguments(), out=out, allow_missing=True)
    assert report.exit_code == 1 and [(row.name, row.status, row.reason) for row in report.failed] == [
        (VID, "missing", "no file of clip.")
    ]
    assert VID not in CacheReader(out).video_ids and len(CacheReader(out).rows) == 10


def test_a_wrong_folder_is_refused_even_if_missing_videos_are_allowed(published):
    streams = published.streams | {"clip": published.text}
    with pytest.raises(
        UsageError, match=r"10 of 10 annotated videos .* Check the folders .*10 files such as qid0\.npz"
    ):
        import_features(published.annotations, features=streams, text=published.text, allow_missing=True)
    with pytest.raises(UsageError, match="is not a folder"):
        import_features(published.annotations, features={"clip": Path("nowhere")}, text=published.text)


def test_non_finite_values_make_a_failed_row(published):
    frames = load_frames(published, "clip")
    frames[1, 2] = np.inf
    write_frames(published, "clip", VID, frames)
    report = import_features(**published.arguments(), out=published.text.parent / "feats.h5")
    (row,) = report.failed
    assert report.exit_code == 1 and row.name == VID and "clip/train_0.npz: 1 values are not finite" in row.reason
    assert len(CacheReader(report.cache).video_ids) == 9


def test_damage_after_the_header_is_refused_when_values_are_read(tmp_path):
    save(tmp_path / "a.npz", features=np.ones((2000, CLIP_WIDTH)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60_000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.npz: damaged \(Bad CRC"):
        read_headers(tmp_path / "a.npz")["features"].read()
    np.save(tmp_path / "b.npy", np.ones((2000, CLIP_WIDTH)))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-1])
    with pytest.raises(VideoError, match=r"b\.npy: damaged"):
        read_headers(tmp_path / "b.npy")["features"].read()


# A second import


def test_a_second_import_writes_only_new_and_changed_videos(published):
    out = published.text.parent / "feats.h5"
    frames = published.frames("clip", "test_0")
    moved = frames.rename(frames.with_suffix(".moved"))
    assert len(import_features(**published.arguments(), out=out, allow_missing=True).done) == 9
    moved.rename(frames)
    write_frames(published, "slow", VID, load_frames(published, "slow") + 1)
    row = read_rows(published)[1]
    annotate(published, [*read_rows(published)[:1], row | {"duration": row["duration"] + 1}, *read_rows(published)[2:]])
    before = (parts_folder(out) / "train_2.h5").stat().st_mtime_ns
    again = import_features(**published.arguments(), out=out)
    assert sorted(again.done) == ["test_0", VID, "train_1"] and len(again.skipped) == 7 and again.exit_code == 0
    assert (parts_folder(out) / "train_2.h5").stat().st_mtime_ns == before
    assert CacheReader(out).grid("train_1").duration_s == row["duration"] + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize": False}, "normalize: cache has true, asked for false"),
        ({"joint": "clip"}, "joint: cache has none, asked for clip"),
        ({"features": ["clip", "slow"]}, "streams: cache has slow 12, clip 16, asked for clip 16, slow 12"),
        ({"features": ["clip"]}, "streams: cache has slow 12, clip 16, asked for clip 16"),
    ],
)
def test_import_with_other_settings_into_the_same_cache_is_refused(published, changes, message):
    out = published.text.parent / "feats.h5"
    import_features(**published.arguments(), out=out)
    if "features" in changes:
        changes = {"features": {name: published.streams[name] for name in changes["features"]}}
    with pytest.raises(CacheError, match=message):
        import_features(**{**published.arguments(), **changes}, out=out)
