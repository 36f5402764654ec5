"""Every benchmark from its own annotation files to its own numbers, as a person types it: real rows, stand-in videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from miniatures import render

from costl.commands import main
from costl.data.annotations import parse_jsonl, parse_predictions
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.world.write_world import TINY_CLIP

ANNOTATIONS = Path(__file__).parents[3] / "../shared/data/annotations"
SMALL = ("model.width=16", "model.heads=2", "spatial.top_k=4", "train.epochs=1", "train.warmup_steps=1")

# Official files of each benchmark, and how many videos of each the miniature keeps (the shortest ones).
FILES = {
    "qvhighlights": {
        "qvhighlights/highlight_train_release.jsonl": 2,
        "qvhighlights/highlight_val_release.jsonl": 1,
        "qvhighlights/highlight_test_with_gt.jsonl": 1,
    },
    "charades": {
        "charades_sta/charades_sta_train_tvr_format.jsonl": 12,
        "charades_sta/charades_sta_test_tvr_format.jsonl": 3,
    },
    "tacos": {"tacos/train.jsonl": 2, "tacos/val.jsonl": 1, "tacos/test.jsonl": 1},
    "tvsum": {"tvsum/tvsum_train.jsonl": 2, "tvsum/tvsum_val.jsonl": 4},
    "youtube-highlights": {
        "youtube_highlights/youtube_train.jsonl": 6,
        "youtube_highlights/youtube_valid.jsonl": 3,
    },
}
NUMBERS = {
    "qvhighlights": {"MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP", "HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1"},
    "charades": {"MR-full-R1@0.3", "MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-R5@0.5", "MR-full-mIoU"},
    "tacos": {"MR-full-R1@0.3", "MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-R5@0.5", "MR-full-mIoU"},
    "tvsum": {"HL-top5-mAP"},
    "youtube-highlights": {"HL-mAP"},
}

pytestmark = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the shared folder of real annotations is not here")


@pytest.mark.parametrize("benchmark", FILES)
def test_a_benchmark_goes_from_its_own_files_to_its_own_numbers(benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = _miniature(benchmark, Path("official"), Path("videos"))
    messages = _costl("prepare", benchmark, "--annotations", "official", "--videos", "videos", "--out", "prepared").stderr
    assert "costl extract" in messages
    options = ("--annotations", "prepared", "--weights", TINY_CLIP, "--workers", "1", "--out", "b.h5")
    _costl("extract", "--videos", "videos", *options)
    features = CacheReader(Path("b.h5"))
    assert features.fps == (1.0 if benchmark in ("charades", "youtube-highlights") else 0.5)
    _costl("train", "--cache", "b.h5", *(part for name in SMALL for part in ("--set", name)))
    metrics = json.loads(_costl("evaluate", "--split", "test", "--json").stdout)
    assert set(metrics["brief"]) >= NUMBERS[benchmark]

    (written,) = Path("runs").glob("*/eval-test/predictions.jsonl")
    truth = parse_jsonl(Path("prepared/test.jsonl").read_text(), "test.jsonl")
    predictions = parse_predictions(written.read_text(), "predictions.jsonl")
    assert {p.qid for p in predictions} == {q.qid for q in truth} and len(truth) == rows
    assert compute_metrics(predictions, truth, benchmark=benchmark)["brief"] == metrics["brief"]
    again = _costl(
        "evaluate", "--predictions", written, "--truth", "prepared/test.jsonl", "--benchmark", benchmark, "--json"
    )
    assert json.loads(again.stdout)["brief"] == metrics["brief"]
    assert _costl("evaluate", "--official", "--json").exit_code == 0


def _costl(*arguments: str | Path):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def _miniature(benchmark: str, official: Path, videos: Path) -> int:
    """Real rows of a few videos under their official file names, and a video for each; -> rows of the test split."""
    official.mkdir()
    videos.mkdir()
    rows: list[dict] = []
    for name, count in FILES[benchmark].items():
        every = [json.loads(line) for line in (ANNOTATIONS / name).read_text().splitlines() if line.strip()]
        seconds = {row["vid"]: row["duration"] for row in every}
        chosen = sorted(seconds, key=lambda vid: (seconds[vid], vid))[:count]
        rows = [row for row in every if row["vid"] in chosen][:40]
        (official / Path(name).name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        for vid in {row["vid"] for row in rows}:
            render(videos / f"{vid}.mp4", seconds[vid] * (2 if benchmark == "tvsum" else 1))
    return len(rows)
