"""The check of a GPU runs to its end on a CPU, and survives everything that may be missing or go wrong."""

from __future__ import annotations

import importlib
import subprocess
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from preloaded import Preloaded

from costl.training import report

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("gpu_check")


class Here:
    """A section that runs in the process of the test: to import everything again would take longer than the sections."""

    pid = 1 << 30  # of no process

    def __init__(self, command):
        module = importlib.import_module("gpu_sections.__main__")
        module.main(*command[3:])

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0


def start(command, **options):
    """Runs a section here; those of several processes and the commands in processes that have imported PyTorch."""
    if command[2] == "gpu_sections" and not command[3].endswith("two_processes"):
        return Here(command)
    return Preloaded(command[1:], **options)


def test_the_whole_check_runs_on_a_cpu(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "find_spec", lambda name: True)  # with --tiny, NVDEC is imitated
    for name in ("draw_curves", "evaluate", "_zero_shot"):
        monkeypatch.setattr(report, name, lambda *_, **__: None)
    page = tmp_path / "gpu.md"
    code = tool.main(["--tiny", "--minutes", "60", "--out", str(page)], start=start)
    text = page.read_text(encoding="utf-8")
    assert code == 0, text
    assert "checks passed, 0 failed.\n" in text and "Left out" not in text
    sections = text.split("\n## ")[1:]
    assert [lines.splitlines()[0] for lines in sections] == [section.title for section in tool.SECTIONS]
    for section, lines in zip(tool.SECTIONS, sections, strict=True):
        expected = ("\n| ", tool.PASSED) if isinstance(section.work, str) else ("    Usage: costl bench",)
        assert any(part in lines for part in expected), section.title


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured_and_no_page_is_written(tool, tmp_path, capsys):
    assert tool.main(["--out", str(tmp_path / "gpu.md")], start=lambda command, **options: Preloaded(command[1:], **options)) == 2
    assert "torch finds no GPU of CUDA. Install torch with CUDA and a driver, or try --tiny" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_torch_nothing_is_measured_and_no_page_is_written(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "find_spec", lambda name: None)
    assert tool.main(["--out", str(tmp_path / "gpu.md")], start=pytest.fail) == 2
    assert "Left out: torch not installed." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_committed_page_is_that_of_the_tool(tool):
    """Either it says that nothing has been run, or it has the results of every section."""
    page = tool.PAGE.read_text(encoding="utf-8")
    assert page == tool.make_page({}) or all(f"\n## {section.title}\n" in page for section in tool.SECTIONS)
    assert ("has not been run on a GPU" in page) != ("\nRun on " in page)


@pytest.mark.parametrize(
    ("changes", "left_s", "expected"),
    [
        ({"packages": ("torch", "no_such_package")}, 99.0, "Left out: no_such_package not installed."),
        ({"seconds": 60.0}, 29.0, "Left out: it takes up to 60 s, and 29 s were left."),
        ({"seconds": 60.0}, -5.0, "Left out: it takes up to 60 s, and 0 s were left."),
    ],
)
def test_a_section_that_cannot_run_says_why(tool, tmp_path, changes, left_s, expected):
    section = replace(tool.SECTIONS[0], **changes)
    lines = tool.run_section(section, tmp_path, left_s=left_s, tiny=True, start=pytest.fail)
    assert lines == [expected]
    assert expected in tool.make_page({section.title: lines}) and f"Left out: {section.title}." in tool.make_page(
        {section.title: lines}
    )


def run(tool, folder: Path, *scripts: str, limit_s: float = 60.0) -> tuple[str, float]:
    """What went wrong with these shell scripts, and the seconds until they had ended."""
    started = time.monotonic()
    logs = [folder / f"{rank}.log" for rank in range(len(scripts))]
    problem = tool.run_processes([["sh", "-c", script] for script in scripts], logs, limit_s=limit_s, start=subprocess.Popen)
    return problem, time.monotonic() - started


def is_running(pid: int) -> bool:
    """Whether a process exists that is no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_processes_know_their_rank_and_find_costl(tool, tmp_path):
    script = 'echo $RANK of $WORLD_SIZE at $MASTER_ADDR: ${PYTHONPATH%%:*}'
    assert run(tool, tmp_path, script, script)[0] == ""
    ranks = [(tmp_path / f"{rank}.log").read_text() for rank in range(2)]
    assert ranks == [f"{rank} of 2 at 127.0.0.1: {ROOT}\n" for rank in range(2)]


def test_a_process_that_fails_is_reported_and_ends_the_others(tool, tmp_path):
    problem, seconds = run(tool, tmp_path, "sleep 60", "echo CUDA error: no luck; exit 3")
    assert problem == "exit code 3: CUDA error: no luck" and seconds < 30


def test_a_process_that_hangs_is_killed_with_its_children(tool, tmp_path):
    problem, seconds = run(tool, tmp_path, "sleep 60 & echo $!; wait", limit_s=3.0)
    assert problem == "stopped after 3 s. What is above was finished." and seconds < 30
    child = int((tmp_path / "0.log").read_text())
    until = time.monotonic() + 30
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(child)


def test_a_row_that_fails_leaves_the_others(tool):
    common = importlib.import_module("gpu_sections.common")
    setup = common.Setup(torch.device("cpu"), Path(), StringIO())
    setup.table("model", "ms")
    with setup.attempt("ViT-L-14"):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    setup.row("ViT-B-32", 1)
    text = setup.file.getvalue()
    assert "\n- **failed**: ViT-L-14: OutOfMemoryError: CUDA out of memory.\n" in text and "| ViT-B-32 | 1 |\n" in text
    assert sum(map(tool.is_failure, text.splitlines())) == 1
