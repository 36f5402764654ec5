"""The public names of `costl`, for a person who imports it in a script."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files, version
from pathlib import Path

import pytest

import costl

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", costl.__all__)
def test_every_public_name_exists_and_is_on_the_page_of_the_api(name):
    assert getattr(costl, name) is not None
    assert f"`costl.{name}" in (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        costl.laod  # noqa: B018


def test_importing_costl_loads_nothing_heavy():
    code = "import sys, costl; print(sorted({'torch', 'numpy', 'h5py', 'open_clip'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_version_is_that_of_the_installed_package():
    assert version("costl") == costl.__version__


def test_type_checkers_use_the_annotations_of_the_installed_package():
    assert "costl/py.typed" in {str(file) for file in files("costl") or ()}


QUERY = {"qid": 1, "query": "a cat", "vid": "v", "duration_s": 10.0}
WRONG_ARGUMENTS = [
    (lambda: costl.CacheReader(5), "path is 5, expected a path"),
    (lambda: costl.Query(**QUERY | {"query": 5}), "'query' is the number 5, expected a text"),
    (lambda: costl.Query(**QUERY | {"query": " "}), "query is empty"),
    (lambda: costl.Query(**QUERY | {"qid": None}), "'qid' is missing"),
    (lambda: costl.Query(**QUERY | {"duration_s": "b"}), "'duration_s' holds the text 'b', expected a number"),
    (lambda: costl.Query(**QUERY | {"duration_s": -1}), "duration is -1, expected seconds above zero"),
    (lambda: costl.Query(**QUERY, windows=((0,),)), "'windows' holds a list that is not 2 numbers long"),
    (lambda: costl.Query(**QUERY, windows=(("a", "b"),)), "'windows' holds the text 'a', expected a number"),
    (lambda: costl.Query(**QUERY, windows=5), "'windows' holds the number 5, expected a list"),
    (lambda: costl.Query(**QUERY, clip_ids=("a",), saliency=((1,),)), "'clip_ids' holds a value that is not a whole number"),
    (lambda: costl.Prediction(1, 5, "v"), "'query' is the number 5, expected a text"),
    (lambda: costl.Prediction(1, "a", "v", windows=((1, 2),)), "'windows' holds a list that is not 3 numbers long"),
    (lambda: costl.compute_metrics([], [], benchmark="x"), "benchmark is 'x', expected one of"),
    (lambda: costl.compute_metrics([], [costl.Query(**QUERY)], clip_s=0), "clip_s is 0, expected seconds above zero"),
    (lambda: costl.compute_metrics([], 2), "queries is 2, expected a list of costl.Query"),
    (lambda: costl.compute_metrics(["a"], []), r"predictions is \['a'\], expected a list of costl.Prediction"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_a_usage_error_that_names_it(call, message):
    with pytest.raises(costl.UsageError, match=message):
        call()
