"""The plots of a run: any query and any training can be drawn."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costl.data.annotations import Prediction, Query
from costl.plots import predictions as prediction_plots
from costl.plots.predictions import draw_predictions
from costl.plots.training_curves import draw_curves

pytestmark = pytest.mark.usefixtures("real_pictures")
QUERY = Query(1, "a cat", "v", 10.0, ((0, 4), (6, 10)), (0, 1), ((4, 4, 4), (2, 1, 0)))
ANSWER = Prediction(1, "a cat", "v", ((0, 5, 0.9), (6, 9, 0.25)), (0.5, 1.0, -1.0, 0.0, 0.25))
TVSUM = Query(1, "a title", "v", 8.0, (), (0, 1, 2, 3), tuple((float(i == 2),) * 20 for i in range(4)), domain="BK")
YOUTUBE = Query(
    1, "dog", "v", 9.0, (), (0, 1, 2), ((0.0,), (4.0,), (2.0,)), ((0.0, 4.0), (2.0, 6.0), (5.5, 9.0)), "dog"
)
RANKED = Prediction(1, "a title", "v", (), (0.0, 0.1, 0.9, 0.2))


def png_size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        (QUERY, ANSWER),
        (QUERY, Prediction(1, "a cat", "v")),
        (Query(1, "no truth", "v", 7300.0), ANSWER),
        (Query(1, "neither", "v", 0.4), Prediction(1, "neither", "v")),
        (Query(1, "$x_{ \u732b \U0001f408 \n " + "very long " * 60, "$v", 99.0, ((0, 99),)), ANSWER),
        (QUERY, Prediction(1, "flat", "v", ((3, 3, 0.1),), (2.0,) * 5)),
        (TVSUM, RANKED),
        (TVSUM, replace(RANKED, windows=((0, 4, 0.9),))),
        (YOUTUBE, RANKED),
        (YOUTUBE, replace(RANKED, saliency=(0.5, 0.1, 0.9))),
        (replace(YOUTUBE, clip_ids=(1,), saliency=((4.0,),)), Prediction(1, "dog", "v")),
    ],
)
def test_any_query_can_be_drawn_without_a_warning(tmp_path, query, answer):
    draw_predictions(tmp_path / "p.png", [(query, answer)], title="50 % of $val", pictures={})
    assert png_size(tmp_path / "p.png")[0] == 1300


def test_each_query_adds_a_panel_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_plots, "MOST_DRAWN", 3)
    heights = []
    for count in (1, 2, 3, 4):
        draw_predictions(tmp_path / "p.png", [(QUERY, ANSWER)] * count, title="val", pictures={})
        heights.append(png_size(tmp_path / "p.png")[1])
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_overlapping_rated_windows_are_averaged():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    prediction_plots._draw_ratings(axes, YOUTUBE)
    steps = axes.patches[0].get_data()
    assert steps.edges.tolist() == [0, 2, 4, 5.5, 6, 9]
    assert (4 * steps.values).tolist() == [0, 2, 4, 3, 2]


def test_matplotlib_is_loaded_only_when_drawing_and_never_pyplot():
    code = (
        "import sys, pathlib, tempfile, costl.plots.predictions as plots; from costl.data.annotations import *;"
        "assert 'matplotlib' not in sys.modules;"
        "p = pathlib.Path(tempfile.mkdtemp()) / 'p.png';"
        "items = [(Query(1, 'q', 'v', 9.0), Prediction(1, 'q', 'v'))];"
        "plots.draw_predictions(p, items, title='', pictures={}); p.unlink(); p.parent.rmdir();"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_a_picture_makes_the_page_wider_but_not_higher(tmp_path):
    items = [(QUERY, ANSWER), (Query(2, "b", "v", 10.0), Prediction(2, "b", "v"))]
    draw_predictions(tmp_path / "plain.png", items, title="val", pictures={})
    pictures = {1: np.full((90, 160, 3), 200, np.uint8)}
    draw_predictions(tmp_path / "pictures.png", items, title="val", pictures=pictures)
    plain_width, plain_height = png_size(tmp_path / "plain.png")
    width, height = png_size(tmp_path / "pictures.png")
    assert width > plain_width and height == plain_height


def epoch(number: int, **more) -> dict:
    return {"epoch": number, "losses": {"focal": 1 / number, "l1": 0.0}, "learning_rate": 1e-3 / number, **more}


@pytest.mark.parametrize(
    "rows",
    [
        [epoch(n, val={"mAP": 10.0 * n, "mIoU": 5.0 * n}) for n in (1, 2, 3)],
        [epoch(1, val={"mAP": 10.0, "mIoU": 5.0})],
        [epoch(n) for n in (1, 2)],
        [epoch(1, val={"mAP": 10.0}), epoch(3, val={"mAP": 10.0, "mIoU": 5.0})],
    ],
    ids=["usual", "one epoch", "no validation", "a row is missing"],
)
def test_any_training_can_be_drawn_and_gives_the_same_bytes(tmp_path, rows):
    for name in ("a.png", "b.png"):
        draw_curves(tmp_path / name, rows, select="mAP", best_epoch=3, title="run $x_{ 50 %")
    assert png_size(tmp_path / "a.png")[0] == 1300
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_same_predictions_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        draw_predictions(tmp_path / name, [(QUERY, ANSWER)], title="val", pictures={})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
