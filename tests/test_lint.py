"""The linter and the type checker have nothing to say."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(tool: str, *arguments: str) -> None:
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; it comes with the extra `test`")
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def test_ruff_finds_nothing():
    check("ruff", "check", ".")


def test_mypy_finds_nothing():
    check("mypy", *(name for name in ("cli.py", "pipeline", "costl") if (ROOT / name).exists()))
