"""The linter and the type checker have nothing to say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Ignored by git, and the same in every run, so that mypy reads again only what has changed.
LAYOUT = ROOT / ".mypy_cache" / "as_installed"


def check(tool: str, *arguments: str, cwd: Path = ROOT) -> None:
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; it comes with the extra `test`")
    result = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        pytest.fail(result.stdout + result.stderr, pytrace=False)


def test_ruff_accepts_every_file():
    check("ruff", "check", ".")


def test_mypy_accepts_the_package_as_it_is_installed():
    """mypy finds `costl.pipeline` and `costl.configs` by their folders alone: links put them where an installation does."""
    package = LAYOUT / "costl"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in [*(ROOT / "costl").iterdir(), ROOT / "pipeline", ROOT / "configs"]:
        (package / source.name).symlink_to(source)
    check("mypy", "--config-file", str(ROOT / "setup.cfg"), "--cache-dir", str(LAYOUT / "cache"), cwd=LAYOUT)
