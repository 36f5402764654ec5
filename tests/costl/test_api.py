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
