"""The linter and the type checker have nothing to say."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Ignored by git, and the same in every run, so that mypy reads again only what has changed.
LAYOUT = ROOT / ".mypy_cache" / "as_installed"
SCRIPT = """
    from pathlib import Path

    import costl

    def best(video: Path, sentence: str) -> costl.Moment | None:
        asker: costl.Asker = costl.load("runs/mine", device="cpu")
        try:
            answers: list[costl.Answer] = asker.ask(video, [sentence])
        except costl.VideoError as error:
            print(error.status)
            return None
        moments: tuple[costl.Moment, ...] = answers[0].moments
        return moments[0] if moments else None

    def map_of(predictions: list[costl.Prediction], queries: list[costl.Query]) -> float:
        brief: dict[str, float] = costl.compute_metrics(predictions, queries)["brief"]
        return brief["MR-full-mAP"]

    start: str = costl.Moment(1.0, 2.0, 0.5).start_s  # wrong
    costl.load(workers="two")  # wrong
"""


def run(tool: str, *arguments: str, cwd: Path = ROOT) -> str:
    """The output of a tool."""
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; it comes with the extra `test`")
    result = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=cwd, capture_output=True, text=True)
    return result.stdout + result.stderr


def test_ruff_accepts_every_file():
    output = run("ruff", "check", ".")
    assert output == "All checks passed!\n", output


def test_mypy_accepts_the_package_and_finds_the_two_errors_of_a_script():
    """mypy finds `costl.pipeline` and `costl.configs` by their folders alone: links put them where an installation does."""
    package = LAYOUT / "costl"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in [*(ROOT / "costl").iterdir(), ROOT / "pipeline", ROOT / "configs"]:
        (package / source.name).symlink_to(source)
    script = LAYOUT / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    settings = ["--config-file", str(ROOT / "setup.cfg"), "--cache-dir", str(LAYOUT / "cache")]
    output = run("mypy", *settings, "-p", "costl", "-m", "script", cwd=LAYOUT)
    errors = [line.partition(": ")[0] for line in output.splitlines() if ": error: " in line]
    wrong = [n for n, line in enumerate(script.read_text().splitlines(), start=1) if line.endswith("# wrong")]
    assert errors == [f"script.py:{n}" for n in wrong], output
