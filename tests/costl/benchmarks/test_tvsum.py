"""TVSum: four layouts give the same ratings, clips become seconds, and the split is that of UMT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from costl.benchmarks.common import IN_CLIPS, OTHER_CUT
from costl.benchmarks.tvsum import HELD_OUT

# Two videos of 7 seconds, three clips each; the second is one of those held out.
RATINGS = {
    "akI8YFjEmUw": [[1 + (clip + person) % 5 for person in range(20)] for clip in range(3)],
    "sTEELN-vY30": [[1 + (2 * clip + person) % 5 for person in range(20)] for clip in range(3)],
}
TITLE = 'Electric "cars"'


def write_json(folder: Path, **changes) -> Path:
    fields = {"fps": 25.0, "frames": "175", "domain": "VU", "title": TITLE} | changes
    folder.mkdir(exist_ok=True)
    videos = {vid: {"anno": anno} | fields for vid, anno in RATINGS.items()}
    (folder / "tvsum_anno.json").write_text(json.dumps(videos))
    return folder


def write_rows(folder: Path, jsonl, suffix: str = "", **changes) -> Path:
    for split, vid in zip(("train", "val"), RATINGS, strict=True):
        row = {"qid": vid, "query": TITLE, "duration": 3, "vid": vid, "relevant_clip_ids": None, "domain": "VU"}
        jsonl(folder / f"tvsum_{split}{suffix}.jsonl", row | {"label": RATINGS[vid]} | changes)
    return folder


def write_tables(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    info = [f"VU\t{vid}\t{TITLE}\thttps://example.org\t0:07" for vid in RATINGS]
    (folder / "ydata-tvsum50-info.tsv").write_text("\n".join(["category\tvideo_id\ttitle\turl\tlength", *info]) + "\n")
    lines = [
        f"{vid}\tVU\t" + ",".join(str(anno[min(frame // 50, 2)][person]) for frame in range(175))
        for vid, anno in RATINGS.items()
        for person in range(20)
    ]
    (folder / "ydata-tvsum50-anno.tsv").write_text("\n".join(lines) + "\n")
    return folder


def scaled(vid: str) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(rating - 1 for rating in clip) for clip in RATINGS[vid])


def test_the_official_files_agree_on_all_fifty_videos(prepare, official):
    folder = official("tvsum")
    truth = json.loads((folder / "tvsum_train_sfc.json").read_text(encoding="utf-8"))
    split = json.loads((folder / "splits_umt.json").read_text(encoding="utf-8"))
    prepared = prepare("tvsum", folder)
    in_clips = prepare("tvsum", folder / "tvsum_train.jsonl", out="clips")
    sums = prepare("tvsum", folder / "tvsum_val_sfc.jsonl", out="sums")
    for name, count, part in (("train", 40, "train"), ("test", 10, "val")):
        rows = prepared.splits[name]
        assert {row.vid for row in rows} == {vid for parts in split.values() for vid in parts[part]}
        assert len(rows) == count and "val" not in prepared.splits
        others = ({row.vid: row for row in other.splits[name]} for other in (in_clips, sums))
        by_clips, by_sums = others
        for row in rows:
            fields = truth[row.vid]
            assert (row.query, row.domain, row.qid) == (fields["title"].strip(), fields["domain"], row.vid)
            assert row.saliency == tuple(tuple(rating - 1 for rating in clip) for clip in fields["anno"])
            assert row.clip_ids == tuple(range(int(row.duration_s / 2)))
            assert row.duration_s == pytest.approx(int(fields["frames"]) / fields["fps"]) == by_sums[row.vid].duration_s
            assert by_clips[row.vid].saliency == row.saliency and by_clips[row.vid].duration_s == 2 * len(row.clip_ids)
            means = [sum(clip) / 20 for clip in row.saliency]
            assert [mean for (mean,) in by_sums[row.vid].saliency] == pytest.approx(means)
    assert in_clips.quirks("train") == {IN_CLIPS: 40} and "Only the sums of the twenty ratings" in sums.messages


def test_the_tables_of_the_dataset_give_the_official_ratings(prepare, official, tmp_path):
    truth = json.loads((official("tvsum") / "tvsum_train_sfc.json").read_text(encoding="utf-8"))
    info, lines = ["category\tvideo_id\ttitle\turl\tlength"], []
    for vid in (*list(truth)[:6], "sTEELN-vY30"):
        fields = truth[vid]
        info.append("\t".join([fields["domain"], vid, fields["title"], fields["url"], fields["length"]]))
        shots = [min(int(frame / fields["fps"] / 2), len(fields["anno"]) - 1) for frame in range(int(fields["frames"]))]
        for person in range(20):
            ratings = ",".join(f"{fields['anno'][shot][person]:.0f}" for shot in shots)
            lines.append(f"{vid}\t{fields['domain']}\t{ratings}")
    (tmp_path / "ydata-tvsum50-info.tsv").write_text("\n".join(info), encoding="utf-8")
    (tmp_path / "ydata-tvsum50-anno.tsv").write_text("\n".join(lines), encoding="utf-8")
    prepared = prepare("tvsum", tmp_path)
    for row in (row for rows in prepared.splits.values() for row in rows):
        official_ratings = tuple(tuple(rating - 1 for rating in clip) for clip in truth[row.vid]["anno"])
        shared = min(len(official_ratings), len(row.saliency))  # m:ss may be a second off, and so a clip
        assert abs(len(official_ratings) - len(row.saliency)) <= 1
        assert row.saliency[:shared] == official_ratings[:shared]


def test_four_small_layouts_give_the_same_rows(prepare, jsonl, tmp_path):
    sums = {vid: [[sum(clip)] for clip in anno] for vid, anno in RATINGS.items()}
    layouts = {
        "json": write_json(tmp_path / "json"),
        "jsonl": write_rows(tmp_path / "jsonl", jsonl, duration=3),
        "tables": write_tables(tmp_path / "tables"),
    }
    for name, folder in layouts.items():
        prepared = prepare("tvsum", folder, out=f"out-{name}")
        (train,), (test,) = prepared.splits["train"], prepared.splits["test"]
        assert (train.vid, test.vid) == tuple(RATINGS) and train.query == TITLE and train.domain == "VU"
        assert (train.saliency, test.saliency) == (scaled(train.vid), scaled(test.vid))
        assert train.duration_s == (6 if name == "jsonl" else 7) and train.clip_ids == (0, 1, 2)
    for split, vid in zip(("train", "val"), RATINGS, strict=True):
        row = {"qid": vid, "query": TITLE, "duration": 7, "vid": vid, "domain": "VU"}
        jsonl(tmp_path / "sums" / f"tvsum_{split}_sfc.jsonl", row | {"label": sums[vid]})
    (row,) = prepare("tvsum", tmp_path / "sums", out="out-sums").splits["test"]
    assert [mean for (mean,) in row.saliency] == pytest.approx([sum(clip) / 20 for clip in scaled(row.vid)])


def test_tvsum_has_no_validation_split_unless_a_share_is_set(prepare, official):
    prepared = prepare("tvsum", official("tvsum"))
    assert "val: none, TVSum has four training videos for each domain" in prepared.messages
    prepared = prepare("tvsum", official("tvsum"), "--val-share", "0.25")
    assert len(prepared.splits["train"]) + len(prepared.splits["val"]) == 40 and len(prepared.splits["val"]) > 2


def test_the_length_of_a_rated_clip_comes_from_the_video(prepare, jsonl, world, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for vid, source in zip(RATINGS, sorted(world.videos.glob("*.mp4")), strict=False):
        shutil.copy(source, videos / f"{vid}.mp4")
    twelve = {"label": [[3] * 20] * 12, "duration": 12}
    prepared = prepare("tvsum", write_rows(tmp_path / "rows", jsonl, **twelve), "--videos", videos)
    assert prepared.splits["train"][0].duration_s == pytest.approx(24, abs=0.1) and prepared.quirks("test") == {IN_CLIPS: 1}
    prepared = prepare("tvsum", write_rows(tmp_path / "rows", jsonl), "--videos", videos)
    assert prepared.quirks("train") == {IN_CLIPS: 1, OTHER_CUT: 1} and prepared.splits["train"][0].duration_s == 6


def test_videos_of_the_split_that_are_not_annotated_are_named(prepare, tmp_path):
    prepared = prepare("tvsum", write_json(tmp_path / "json"))
    absent = sorted(set(HELD_OUT.values()) - {"sTEELN-vY30"})
    assert f"not annotated here: {', '.join(absent)}." in prepared.messages


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"title": None}, "'title' is missing"),
        ({"frames": "-1"}, "'frames' is '-1', expected a number above zero"),
        ({"anno": [[1.0] * 19]}, "not 20 numbers long"),
        ({"anno": []}, "no clip is rated"),
        ({"anno": [[0.0] * 20]}, "a rating is 0, expected 1 to 5"),
    ],
)
def test_a_bad_video_is_named(prepare, tmp_path, changes, answer):
    prepared = prepare("tvsum", write_json(tmp_path / "json", **changes))
    assert prepared.code == 2 and "tvsum_anno.json: akI8YFjEmUw: " in prepared.messages and answer in prepared.messages


def test_a_duration_that_is_neither_clips_nor_seconds_is_refused(prepare, jsonl, tmp_path):
    prepared = prepare("tvsum", write_rows(tmp_path / "rows", jsonl, duration=40))
    assert prepared.code == 2 and "tvsum_train.jsonl:1: 'duration' is 40, expected 3, the number of rated" in prepared.messages
    assert prepare("tvsum", write_rows(tmp_path / "rows", jsonl, duration=7)).splits["train"][0].duration_s == 7


@pytest.mark.parametrize(
    ("file", "old", "new", "answer"),
    [
        ("info", "category\t", "kind\t", "info.tsv:1: columns kind, video_id, title, url, length, expected category, video_id"),
        ("info", "0:07", "7 s", "info.tsv:2: length is '7 s', expected minutes:seconds"),
        ("info", "https://example.org\t", "", "info.tsv:2: length is '', expected minutes:seconds"),
        ("info", "akI8YFjEmUw", "another", "anno.tsv:1: video 'akI8YFjEmUw' is not in ydata-tvsum50-info.tsv"),
        ("anno", "akI8YFjEmUw\tVU", "sTEELN-vY30\tVU", "40 rows of ratings, expected 20"),
        ("anno", ",1,1,1,1,1,", ",1,1,1,one,1,", "a rating is not a number"),
        ("anno", "\tVU\t", "\t", "anno.tsv:1: 2 columns, expected 3"),
    ],
)
def test_a_bad_table_is_named_by_line(prepare, tmp_path, file, old, new, answer):
    folder = write_tables(tmp_path / "tables")
    path = folder / f"ydata-tvsum50-{file}.tsv"
    path.write_text(path.read_text().replace(old, new))
    prepared = prepare("tvsum", folder)
    assert prepared.code == 2 and answer in prepared.messages
