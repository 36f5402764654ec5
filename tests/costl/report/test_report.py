"""A report: one file that holds everything, breaks for no text, says what is missing, and is the same for the same run."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

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
from costl.predict.attention_maps import Looks
from costl.report.build import report
from costl.report.item import Item, Shot, by_badness, clock, in_detail
from costl.report.page import Page, to_html
from costl.report.shots import clips_to_show
from costl.train import train

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & \u2028 \x00 \ud800 \u202e"


class Parsed(HTMLParser):
    """The page as a browser would take it apart: tags with attributes, the text of scripts, ids."""

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
    """A small world of its own with a run of two epochs, evaluated on `test`."""
    own = world.copy(tmp_path_factory.mktemp("report"))
    folder = own.cache.parent / "run"
    train(own.cache, overrides=["train.epochs=2"], out=folder, device="cpu")
    evaluate(folder, split="test", device="cpu")
    return own, folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run, to be spoiled."""
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    return report(trained[1], out=tmp_path_factory.mktemp("out") / "r.html", videos=trained[0].videos, detailed=4)


def looks(patches: int = 4) -> Looks:
    share = np.full((1, patches), 1 / patches, np.float32)
    words = (EVIL, "dog")
    return Looks(
        words, share, share > 0, np.full((1, 2, patches), 0.1, np.float32), np.full((1, 2), 0.6, np.float32),
        np.array([[0.25, 0.75]], np.float32),
    )  # fmt: skip


def page(**changes) -> Page:
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 6)).save(jpeg, "JPEG")
    query = Query(EVIL.strip(), EVIL, EVIL, 20.0, ((0, 4),), (0, 1), ((4, 4, 4), (2, 1, 0)))
    answer = Prediction(query.qid, EVIL, EVIL, ((0, 5, 0.9), (6, 9, 0.2)), tuple(range(10)))
    plain = Page(
        run=EVIL,
        split=EVIL,
        numbers={f"MR-full-{EVIL}": 12.5, "mAP": 99.0},
        intervals={"mAP": (97.5, 99.5)},
        notes=[EVIL],
        rows=[{"epoch": 1, "losses": {EVIL: 1.0}, "learning_rate": 0.1, "val": {EVIL: 3.0}}],
        select=EVIL,
        kept=1,
        items=[Item(query, answer, detailed=True, shots=(Shot("p0", EVIL, 1.0, looks()),))],
        pictures={"p0": Thumbnail(jpeg.getvalue(), 8, 6, (0.125, 0.0, 0.75, 1.0))},
        patch_grid=(2, 2),
    )
    return dataclasses.replace(plain, **changes)


def test_no_text_ever_becomes_markup():
    calm = Parsed(to_html(page()))
    harmless = "x"
    counted = Counter(tag for tag, _ in calm.tags)
    assert counted["script"] == 2 and counted["img"] == 0
    assert not [name for _, attrs in calm.tags for name in attrs if name.startswith("on")]
    assert set(json.loads(calm.scripts[0])) == {"rows", "columns", "shots"}
    item = page().items[0]
    tame_query = dataclasses.replace(item.query, qid="x", query=harmless, vid=harmless)
    tame_shot = dataclasses.replace(item.shots[0], label="x", looks=dataclasses.replace(looks(), words=("x", "y")))
    tame = page(
        run="x", split="x", notes=["x"], select="x", numbers={"MR-full-x": 12.5, "mAP": 99.0},
        rows=[{"epoch": 1, "losses": {"x": 1.0}, "learning_rate": 0.1, "val": {"x": 3.0}}],
        items=[dataclasses.replace(item, query=tame_query, shots=(tame_shot,))],
    )  # fmt: skip
    assert [tag for tag, _ in Parsed(to_html(tame)).tags] == [tag for tag, _ in calm.tags]


def test_ids_are_unique_and_every_reference_leads_somewhere(made):
    for html in (made.path.read_bytes(), to_html(page())):
        parsed = Parsed(html)
        ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        wanted = {name for _, attrs in parsed.tags for name in (attrs.get("aria-labelledby") or "").split()}
        wanted |= {attrs["href"][1:] for tag, attrs in parsed.tags if tag in ("a", "use")}
        assert wanted <= set(ids)


@pytest.mark.promise(18)
def test_nothing_is_asked_from_anywhere(made):
    text = made.path.read_text(encoding="utf-8")
    parsed = Parsed(text.encode())
    sources = [attrs[name] for _, attrs in parsed.tags for name in ("src", "href", "action", "srcset") if name in attrs]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\(|https?:(?!//www\.w3\.org/2000/svg)", text)
    (policy,) = [attrs["content"] for attrs in parsed.all("meta") if "http-equiv" in attrs]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_every_query_is_listed_worst_first_and_some_open_in_detail(made, trained):
    parsed, queries = Parsed(made.path.read_bytes()), CacheReader(trained[0].cache).annotations("test").splitlines()
    rows = [attrs for attrs in parsed.all("tr") if "data-iou" in attrs]
    ious = [float(row["data-iou"]) for row in rows]
    assert sorted(row["data-qid"] for row in rows) == sorted(str(json.loads(line)["qid"]) for line in queries)
    assert ious == sorted(ious)
    detailed = [row["data-id"] for row in rows if "data-detailed" in row]
    assert len(detailed) == 4 == made.detailed == len(parsed.all("article"))
    assert detailed[0] == "q0" and detailed[-1] == f"q{len(rows) - 1}"


def test_pictures_are_small_jpegs_embedded_once_and_the_size_told_is_the_size(made):
    parsed = Parsed(made.path.read_bytes())
    pictures = [attrs["href"] for attrs in parsed.all("image")]
    assert len(pictures) == len(set(pictures)) == made.pictures > 4
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,")))) as image:
            assert image.format == "JPEG" and max(image.size) <= 240
    used = {attrs["href"][1:] for attrs in parsed.all("use")}
    assert used == {attrs["id"] for attrs in parsed.all("image")}
    assert made.path.stat().st_size == made.size_bytes < 1_000_000


def test_the_maps_are_what_the_model_looked_at(made, trained):
    maps = json.loads(Parsed(made.path.read_bytes()).scripts[0])
    features = CacheReader(trained[0].cache)
    assert (maps["rows"], maps["columns"]) == features.patch_grid
    for shot in maps["shots"].values():
        assert sum(shot["share"]) == pytest.approx(1000, abs=30)
        assert len(shot["chosen"]) == 4  # top_k of this world
        best = sorted(range(len(shot["share"])), key=lambda patch: -shot["share"][patch])[:4]
        assert min(shot["share"][patch] for patch in shot["chosen"]) >= shot["share"][best[-1]] - 1
        for word, nothing in zip(shot["words"], shot["nothing"], strict=True):
            assert sum(word) + nothing == pytest.approx(1000, abs=5)


def test_the_same_run_gives_the_same_bytes(made, trained, tmp_path):
    again = report(trained[1], out=tmp_path / "again.html", videos=trained[0].videos, detailed=4)
    assert again.path.read_bytes() == made.path.read_bytes()


def test_what_was_not_evaluated_is_evaluated_and_older_numbers_are_made_again(run, trained):
    found = report(run, split="val", videos=trained[0].videos, detailed=0)
    assert found.path == run / "report-val.html" and (run / "eval-val" / "metrics.json").is_file()
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


def test_a_split_without_labels_and_a_run_chosen_on_test_are_shown_for_what_they_are(trained, tmp_path):
    world = trained[0]
    bare = [json.loads(line) for line in CacheReader(world.cache).annotations("test").splitlines()]
    kept = ("qid", "query", "vid", "duration")
    unlabelled = "".join(json.dumps({name: row[name] for name in kept}) + "\n" for row in bare)
    copy = world.copy(tmp_path / "bare", test=unlabelled)
    train(copy.cache, overrides=["train.epochs=1"], out=tmp_path / "run", device="cpu")
    page = report(tmp_path / "run", detailed=1).path.read_text(encoding="utf-8")
    assert "unlabelled" in page and "legacy" not in page
    train(world.cache, overrides=["train.epochs=1", "train.select_on=test"], out=tmp_path / "legacy", device="cpu")
    found = report(tmp_path / "legacy", detailed=0)
    assert "the test split, which chose the epoch" in found.path.read_text(encoding="utf-8")
    assert any("legacy" in note for note in found.notes)


def test_without_the_videos_it_says_so_and_shows_the_rest(run, trained):
    (trained[0].videos).rename(trained[0].videos.with_name("elsewhere"))
    try:
        found = report(run, detailed=2)
    finally:
        trained[0].videos.with_name("elsewhere").rename(trained[0].videos)
    assert found.pictures == 0 and found.detailed == 2
    assert any("--videos" in note for note in found.notes)
    assert "--videos" in found.path.read_text(encoding="utf-8")


def test_a_video_that_is_another_one_now_is_not_shown(run, trained, tmp_path):
    videos = Path(shutil.copytree(trained[0].videos, tmp_path / "videos"))
    shutil.copy(videos / "train_0000.mp4", videos / "test_0000.mp4")
    (videos / "test_0001.mp4").unlink()
    found = report(run, videos=videos, detailed=9)
    assert found.pictures == 0
    assert any("test_0000" in note and "another file" in note for note in found.notes)
    assert any("test_0001" in note and "no such video" in note for note in found.notes)


@pytest.mark.parametrize("line", ["{", "[]", '{"epoch": "x"}', '{"epoch": 2, "losses": {"focal": NaN}}', "\ud800"])
def test_a_damaged_line_of_training_is_left_out_and_told(run, line):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_bytes("\n".join([lines[0], line]).encode(errors="surrogatepass"))
    found = report(run, detailed=0)
    assert any("line 2 cannot be read" in note for note in found.notes)
    assert "1 epochs" in found.path.read_text(encoding="utf-8")


def test_training_and_evaluation_leave_their_pictures(trained):
    own, folder = trained
    with (
        Image.open(folder / "curves.png") as curves,
        Image.open(folder / "eval-test" / "predictions.png") as predictions,
    ):
        assert curves.width == 1300
        assert predictions.width > 1300  # the videos are at hand, so that each panel has its thumbnail
    assert CacheReader(own.cache).videos == own.videos.resolve()  # though both have moved since extraction


def test_slips_are_told_in_a_sentence(run, trained, tmp_path):
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


def test_the_command_prints_the_file_and_says_what_is_in_it(run, trained):
    result = CliRunner().invoke(main, ["report", str(run), "--videos", str(trained[0].videos), "--detailed", "3"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(run / "report-test.html")
    assert "3 of 6 queries in full detail" in result.stderr


def test_a_run_without_patches_or_spatial_steps_has_pictures_without_maps(trained, tmp_path):
    train(trained[0].cache, overrides=["train.epochs=1", "spatial.steps=0"], out=tmp_path / "run", device="cpu")
    found = report(tmp_path / "run", detailed=1)
    parsed = Parsed(found.path.read_bytes())
    assert found.pictures > 0 and not [
        attrs for attrs in parsed.all("div") if attrs.get("class", "").startswith("words")
    ]


def test_the_order_is_worst_first_and_the_detail_is_spread():
    def item(iou: float, **more) -> Item:
        query = Query(iou * 100 // 1 or "a", "q", "v", 100.0, ((0, 10),) if "bare" not in more else ())
        return Item(query, None if "lost" in more else Prediction(1, "q", "v", ((0, 10 * iou, 0.5),)))

    items = by_badness([item(0.9), item(0.1, lost=1), item(0.3), item(0.2, bare=1), item(0.6)])
    assert [one.outcome for one in items] == ["near", "hit", "hit", "unlabelled", "unanswered"]
    assert in_detail(items, 2) == {0, 3} and in_detail(items, 99) == {0, 1, 2, 3} and in_detail(items, 0) == set()


def test_clips_to_show_are_of_the_best_moments_and_of_the_truth_that_was_missed(trained):
    features = CacheReader(trained[0].cache)
    query = Query(1, "q", "test_0000", 24.0, ((20, 24),))
    moments = ((0.0, 10.0, 0.9), (12.0, 14.0, 0.5), (99.0, 120.0, 0.1))
    found = clips_to_show(moments, query, features)
    assert found == {
        0: "start of moment 1", 2: "middle of moment 1", 4: "end of moment 1", 6: "moment 2", 11: "moment 3"
    } | {}  # fmt: skip
    hit = clips_to_show(((20.0, 24.0, 0.9),), query, features)
    assert not any("true" in label for label in hit.values())
    assert clips_to_show((), query, features) == {11: "true moment, not found"}


def test_a_clock_shows_tenths_where_there_are_any():
    assert [clock(second) for second in (0, 7.04, 59.96, 61.5, 3723)] == ["0:00", "0:07", "1:00", "1:01.5", "1:02:03"]
