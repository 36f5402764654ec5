"""A report is one self-contained file. It escapes all text, notes what is missing, and is the same for the same run."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from costl.commands import main
from costl.data.annotations import Prediction, Query
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.preview.thumbnails import Thumbnail
from costl.predict.attention_maps import AttentionMaps
from costl.report.build import report
from costl.report.kinds import Kinds, score_kinds
from costl.report.page import to_html
from costl.report.pictures import clips_to_show
from costl.report.query import ClipPicture, Item, choose_detailed, worst_first
from costl.report.training import Curve
from costl.train import train

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & \u2028 \x00 \ud800 \u202e"


class Parsed(HTMLParser):
    """The parsed page: tags with their attributes, and the text of its scripts."""

    def __init__(self, html: bytes):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(html.decode("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A copy of the small world, and a run of two epochs that was evaluated on `test`."""
    copied = world.copy(tmp_path_factory.mktemp("report"))
    folder = copied.cache.parent / "run"
    train(copied.cache, overrides=["train.epochs=2"], out=folder, device="cpu")
    evaluate(folder, split="test", device="cpu")
    return copied, folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    return report(trained[1], out=tmp_path_factory.mktemp("out") / "r.html", videos=trained[0].videos, detailed=4)


def attention_maps(word: str) -> AttentionMaps:
    patches = 4
    share = np.full((1, patches), 1 / patches, np.float32)
    return AttentionMaps(
        (word, "dog"), share, share > 0, np.full((1, 2, patches), 0.1, np.float32), np.full((1, 2), 0.6, np.float32),
        np.array([[0.25, 0.75]], np.float32),
    )  # fmt: skip


def page(text: str, **changed: Any) -> bytes:
    """The page of a report in which everything that users and files can name is called `text`."""
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 6)).save(jpeg, "JPEG")
    query = Query(text.strip(), text, text, 20.0, ((0, 4),), (0, 1), ((4, 4, 4), (2, 1, 0)), kind=text)
    answer = Prediction(query.qid, text, text, ((0, 5, 0.9), (6, 9, 0.2)), tuple(range(10)))
    picture = ClipPicture("p0", Thumbnail(jpeg.getvalue(), 8, 6, (0.125, 0.0, 0.75, 1.0)), text, 1.0)
    curves = [Curve(text, "guess", {1: 3.0}), Curve("other", "guess", {1: 3.0}), Curve(f"{text} loss", "truth", {1: 1.0})]
    content: dict[str, Any] = {
        "run": text,
        "split": text,
        "numbers": {f"MR-full-{text}": 12.5, f"{text}-mAP": 99.0},
        "intervals": {f"{text}-mAP": (97.5, 99.5)},
        "notes": [text],
        "curves": curves,
        "selected": text,
        "selection_split": "validation",
        "best_epoch": 1,
        "items": [Item(query, answer, 12.5, pictures=(picture,), maps=attention_maps(text))],
        "kinds": Kinds({"MR-full-mAP": text}, {text: 1}, {text: {"MR-full-mAP": 12.5}}),
        "patch_grid": (2, 2),
    }
    return to_html(**content | changed)


def test_no_text_ever_becomes_markup():
    hostile = Parsed(page(HOSTILE))
    counted = Counter(tag for tag, _ in hostile.tags)
    assert counted["script"] == 2 and counted["img"] == 0
    assert not [name for _, attrs in hostile.tags for name in attrs if name.startswith("on")]
    assert set(json.loads(hostile.scripts[0])) == {"columns", "shots"}
    harmless = Parsed(page("x"))
    assert [tag for tag, _ in harmless.tags] == [tag for tag, _ in hostile.tags]
    assert [set(attrs) for _, attrs in harmless.tags] == [set(attrs) for _, attrs in hostile.tags]


def test_ids_are_unique_and_every_reference_has_a_target(written):
    for html in (written.path.read_bytes(), page(HOSTILE)):
        parsed = Parsed(html)
        ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        references = {name for _, attrs in parsed.tags for name in (attrs.get("aria-labelledby") or "").split()}
        references |= {attrs["href"][1:] for tag, attrs in parsed.tags if tag in ("a", "use")}
        assert references <= set(ids)


@pytest.mark.promise(18)
def test_the_report_loads_nothing_from_elsewhere(written):
    text = written.path.read_text(encoding="utf-8")
    parsed = Parsed(text.encode())
    sources = [attrs[name] for _, attrs in parsed.tags for name in ("src", "href", "action", "srcset") if name in attrs]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\(|https?:(?!//www\.w3\.org/2000/svg)", text)
    (policy,) = [attrs["content"] for attrs in parsed.all("meta") if "http-equiv" in attrs]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_queries_are_listed_worst_first_and_some_have_pictures(written, trained):
    parsed = Parsed(written.path.read_bytes())
    queries = CacheReader(trained[0].cache).annotations("test").splitlines()
    rows = [attrs for attrs in parsed.all("tr") if "data-iou" in attrs]
    ious = [float(row["data-iou"]) for row in rows]
    assert sorted(row["data-qid"] for row in rows) == sorted(str(json.loads(line)["qid"]) for line in queries)
    assert ious == sorted(ious)
    detailed = [row["data-id"] for row in rows if "data-pictured" in row]
    assert len(detailed) == 4 == written.detailed
    assert detailed[0] == "q0" and detailed[-1] == f"q{len(rows) - 1}"


def test_every_query_has_a_detail_view_with_moments_and_saliency(written):
    parsed = Parsed(written.path.read_bytes())
    links = [attrs["href"] for attrs in parsed.all("a")]
    assert [f"#{attrs['id']}" for attrs in parsed.all("article")] == links[1:] and len(links) == 7  # the first skips to the list
    assert len([attrs for attrs in parsed.all("polyline") if attrs["class"] == "guess"]) > 6


KINDS = {
    "kinds": ([{"kind": "place"}, {"kind": "motion"}, {"kind": "place"}], ["place", "motion", "place"], True),
    "some kinds": ([{"kind": "place"}, {}, {"kind": None}], ["place", "", ""], True),
    "no kinds": ([{}, {}, {}], ["", "", ""], False),
    "other fields of that name": ([{"kind": 3}, {"kind": ["a"]}, {"kinds": "x"}], ["", "", ""], False),
    "markup": ([{"kind": "<b>&\""}, {"kind": "a|b"}, {"kind": ""}], ["<b>&\"", "a|b", ""], True),
    "domains": ([{"domain": "BK"}, {"domain": "VT"}, {"domain": "BK"}], ["BK", "VT", "BK"], True),
}


@pytest.mark.parametrize("benchmark", ["qvhighlights", "charades", "tvsum"])
@pytest.mark.parametrize("name", KINDS)
def test_queries_have_their_kind_and_each_kind_its_numbers(name, benchmark):
    fields, expected, has_table = KINDS[name]
    labels = {"relevant_windows": [[2, 6]], "relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4], [3, 4]]}
    rows = [{"qid": i, "query": f"q{i}", "vid": "v", "duration": 10, **labels} | more for i, more in enumerate(fields)]
    queries = [Query.from_row(row) for row in rows]
    ends = (10.0, 6.0, 3.0)  # IoU 0.5, 1, 0.25
    answers = [Prediction(i, f"q{i}", "v", ((2, end, 0.9),), (0, 3, 2, 1, 0)) for i, end in enumerate(ends)]
    items = [Item(query, answer) for query, answer in zip(queries, answers, strict=True)]
    kinds, items = score_kinds(items, benchmark=benchmark, official=False)
    assert [item.kind for item in items] == expected
    # By TVSum, the second rater prefers neither clip.
    assert [item.precision for item in items] == [pytest.approx(50 if benchmark == "tvsum" else 100)] * 3
    assert bool(kinds.columns) == has_table and kinds.queries == Counter(sorted(expected))
    if benchmark != "tvsum":
        hits = {kind: [100 * (i != 2) for i in range(3) if expected[i] == kind] for kind in set(expected)}
        recall = {kind: scores["MR-full-R1@0.5"] for kind, scores in kinds.scores.items()}
        assert recall == {kind: pytest.approx(sum(values) / len(values)) for kind, values in hits.items()}
    html = page("x", items=worst_first(items), kinds=kinds)
    parsed = Parsed(html)
    assert sorted(row["data-kind"] for row in parsed.all("tr") if "data-kind" in row) == sorted(expected)
    assert bool([row for row in parsed.all("select") if row["name"] == "kind"]) == any(expected) == (b'id="kinds"' in html)


def test_outdated_predictions_give_a_note_instead_of_scores_by_kind(run):
    path = run / "eval-test" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"pred_saliency_scores": [1.0]}) + "\n" for row in rows))
    written = report(run, detailed=0)
    assert any("No scores by kind of query" in note and "1 saliency scores" in note for note in written.notes)


def test_the_report_of_one_domain_has_the_queries_of_that_domain(trained, tmp_path):
    features = CacheReader(trained[0].cache)
    splits = {}
    for split in ("train", "val", "test"):
        rows = [json.loads(line) for line in features.annotations(split).splitlines()]
        rows = [row | {"domain": "BK" if i % 2 else "VT"} for i, row in enumerate(rows)]
        splits[split] = "".join(json.dumps(row) + "\n" for row in rows)
    copy = trained[0].copy(tmp_path / "domains", **splits)
    train(copy.cache, overrides=["train.epochs=1", "data.domain=BK"], out=tmp_path / "run", device="cpu")
    written = report(tmp_path / "run", detailed=0)
    assert written.queries == 3 and "unanswered" not in {
        row.get("data-outcome") for row in Parsed(written.path.read_bytes()).all("tr")
    }


@pytest.mark.parametrize("clips", [1, 2, 299, 301, 3600])
def test_the_curve_of_a_long_video_keeps_its_peak(clips):
    saliency = np.zeros(clips)
    saliency[peak := clips // 3] = 1.0
    item = Item(Query(1, "q", "v", 2.0 * clips), Prediction(1, "q", "v", (), tuple(saliency.tolist())))
    assert len(item.saliency_points) == min(clips, 300)
    assert min(item.saliency_points, key=lambda point: point[1])[0] == 2 * peak + 1
    assert item.saliency_points == sorted(item.saliency_points)


def test_pictures_are_embedded_once_and_the_reported_size_is_true(written):
    parsed = Parsed(written.path.read_bytes())
    pictures = [attrs["href"] for attrs in parsed.all("image")]
    assert len(pictures) == len(set(pictures)) == written.pictures > 4
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,")))) as image:
            assert image.format == "JPEG" and max(image.size) <= 240
    used = {attrs["href"][1:] for attrs in parsed.all("use")}
    assert used == {attrs["id"] for attrs in parsed.all("image")}
    assert written.path.stat().st_size == written.size_bytes < 1_000_000


def test_attention_maps_sum_to_one_and_list_the_best_patches(written, trained):
    maps = json.loads(Parsed(written.path.read_bytes()).scripts[0])
    features = CacheReader(trained[0].cache)
    assert maps["columns"] == features.patch_grid[1]
    for shot in maps["shots"].values():
        assert sum(shot["share"]) == pytest.approx(1000, abs=30)
        assert len(shot["chosen"]) == 4  # top_k of this world
        best = sorted(range(len(shot["share"])), key=lambda patch: -shot["share"][patch])[:4]
        assert min(shot["share"][patch] for patch in shot["chosen"]) >= shot["share"][best[-1]] - 1
        for word, nothing in zip(shot["words"], shot["nothing"], strict=True):
            assert sum(word) + nothing == pytest.approx(1000, abs=5)


def test_the_same_run_gives_the_same_bytes(written, trained, tmp_path):
    again = report(trained[1], out=tmp_path / "again.html", videos=trained[0].videos, detailed=4)
    assert again.path.read_bytes() == written.path.read_bytes()


def test_a_missing_damaged_or_outdated_evaluation_is_repeated(run, trained):
    written = report(run, split="val", videos=trained[0].videos, detailed=0)
    assert written.path == run / "report-val.html" and (run / "eval-val" / "metrics.json").is_file()
    before = (run / "eval-val" / "metrics.json").stat().st_mtime_ns
    report(run, split="val", detailed=0)
    assert (run / "eval-val" / "metrics.json").stat().st_mtime_ns == before
    (run / "eval-val" / "predictions.jsonl").write_text("{")
    report(run, split="val", detailed=0)
    assert (run / "eval-val" / "metrics.json").stat().st_mtime_ns > before
    os.utime(run / "eval-val" / "predictions.jsonl", ns=(1, 1))
    report(run, split="val", detailed=0)
    assert (run / "eval-val" / "predictions.jsonl").stat().st_mtime_ns > before


def test_intervals_are_shown_where_metrics_have_them(run):
    path = run / "eval-test" / "metrics.json"
    metrics = json.loads(path.read_text())
    assert "bootstrap" in report(run, detailed=0).path.read_text(encoding="utf-8")
    path.write_text(json.dumps({name: value for name, value in metrics.items() if name != "intervals"}))
    assert "bootstrap" not in report(run, detailed=0).path.read_text(encoding="utf-8")
    name = next(iter(metrics["brief"]))
    path.write_text(json.dumps(metrics | {"intervals": {name: [12.25, 34.75]}}))
    assert "12.2 to 34.8" in report(run, detailed=0).path.read_text(encoding="utf-8")


def test_unlabelled_splits_and_selection_on_test_are_marked(trained, tmp_path):
    world = trained[0]
    rows = [json.loads(line) for line in CacheReader(world.cache).annotations("test").splitlines()]
    fields = ("qid", "query", "vid", "duration")
    unlabelled = "".join(json.dumps({name: row[name] for name in fields}) + "\n" for row in rows)
    copy = world.copy(tmp_path / "unlabelled", test=unlabelled)
    train(copy.cache, overrides=["train.epochs=1", "train.batch_size=30"], out=tmp_path / "run", device="cpu")
    html = report(tmp_path / "run", detailed=1).path.read_text(encoding="utf-8")
    assert "unlabelled" in html and "legacy" not in html
    train(world.cache, overrides=["train.epochs=1", "train.select_on=test"], out=tmp_path / "legacy", device="cpu")
    written = report(tmp_path / "legacy", detailed=0)
    assert "the test split, which selected the epoch" in written.path.read_text(encoding="utf-8")
    assert any("legacy" in note for note in written.notes)


def test_without_the_videos_the_report_has_a_note_and_no_pictures(run, trained):
    (trained[0].videos).rename(trained[0].videos.with_name("elsewhere"))
    try:
        written = report(run, detailed=2)
    finally:
        trained[0].videos.with_name("elsewhere").rename(trained[0].videos)
    assert written.pictures == written.detailed == 0 and written.queries == 6
    assert any("--videos" in note for note in written.notes)
    assert "--videos" in written.path.read_text(encoding="utf-8")


def test_a_replaced_video_gets_no_pictures(run, trained, tmp_path):
    videos = Path(shutil.copytree(trained[0].videos, tmp_path / "videos"))
    shutil.copy(videos / "train_0000.mp4", videos / "test_0000.mp4")
    (videos / "test_0001.mp4").unlink()
    written = report(run, videos=videos, detailed=9)
    assert written.pictures == 0
    assert any("test_0000" in note and "not the file that was extracted" in note for note in written.notes)
    assert any("test_0001" in note and "no such video" in note for note in written.notes)


@pytest.mark.parametrize("line", ["{", "[]", '{"epoch": "x"}', '{"epoch": 2, "losses": {"focal": NaN}}', "\ud800"])
def test_a_damaged_training_row_is_left_out_with_a_note(run, line):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_bytes("\n".join([lines[0], line]).encode(errors="surrogatepass"))
    written = report(run, detailed=0)
    assert any("line 2 cannot be read" in note for note in written.notes)
    assert "1 epochs" in written.path.read_text(encoding="utf-8")


def test_training_and_evaluation_write_their_plots(trained):
    world, folder = trained
    with (
        Image.open(folder / "curves.png") as curves,
        Image.open(folder / "eval-test" / "predictions.png") as predictions,
    ):
        assert curves.width == 1300
        assert predictions.width > 1300  # the videos are available, so each panel has a thumbnail
    assert CacheReader(world.cache).videos == world.videos.resolve()  # although both have moved since extraction


def test_wrong_arguments_are_refused_with_an_error_message(run, trained, tmp_path):
    with pytest.raises(UsageError, match="not a run"):
        report(tmp_path)
    with pytest.raises(UsageError, match="no split 'nope'"):
        report(run, split="nope")
    with pytest.raises(UsageError, match="detailed is -1"):
        report(run, detailed=-1)
    with pytest.raises(UsageError, match="no such folder"):
        report(run, videos=tmp_path / "gone")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"cache": str(tmp_path / "gone.h5")}))
    with pytest.raises(CacheError, match="--cache"):
        report(run)
    assert report(run, cache=trained[0].cache, detailed=0).queries == 6


def test_the_command_prints_the_path_and_the_counts(run, trained):
    result = CliRunner().invoke(main, ["report", str(run), "--videos", str(trained[0].videos), "--detailed", "3"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(run / "report-test.html")
    assert "6 queries, 3 of them with " in result.stderr


def test_a_model_without_spatial_steps_has_pictures_without_maps(trained, tmp_path):
    train(trained[0].cache, overrides=["train.epochs=1", "spatial.steps=0"], out=tmp_path / "run", device="cpu")
    written = report(tmp_path / "run", detailed=1)
    parsed = Parsed(written.path.read_bytes())
    word_buttons = [attrs for attrs in parsed.all("div") if attrs.get("class", "").startswith("words")]
    assert written.pictures > 0 and not word_buttons


def test_items_are_sorted_worst_first_and_details_are_spread():
    def item(iou: float, *, labelled: bool = True, answered: bool = True) -> Item:
        windows = ((0, 10),) if labelled else ()
        query = Query(round(iou * 100) or "a", "q", "v", 100.0, windows)
        return Item(query, Prediction(1, "q", "v", ((0, 10 * iou, 0.5),)) if answered else None)

    items = worst_first([item(0.9), item(0.1, answered=False), item(0.3), item(0.2, labelled=False), item(0.6)])
    assert [one.outcome for one in items] == ["near", "hit", "hit", "unlabelled", "unanswered"]
    assert choose_detailed(items, 2) == [0, 3]
    assert choose_detailed(items, 99) == [0, 1, 2, 3]
    assert choose_detailed(items, 0) == choose_detailed(items[4:], 2) == []


def test_clips_to_show_cover_the_best_moments_and_a_missed_truth(trained):
    features = CacheReader(trained[0].cache)
    query = Query(1, "q", "test_0000", 24.0, ((20, 24),))
    moments = ((0.0, 10.0, 0.9), (12.0, 14.0, 0.5), (99.0, 120.0, 0.1))
    assert clips_to_show(moments, query, features) == {
        0: "start of moment 1", 2: "middle of moment 1", 4: "end of moment 1", 6: "moment 2", 11: "moment 3"
    }  # fmt: skip
    hit = clips_to_show(((20.0, 24.0, 0.9),), query, features)
    assert not any("true" in label for label in hit.values())
    assert clips_to_show((), query, features) == {11: "true moment, missed"}
