"""Runs on one GPU, in eight minutes, what the tests only imitate on a CPU, and writes docs/gpu.md.

    python tools/gpu_check.py           # on a machine with a GPU
    python tools/gpu_check.py --tiny    # the same code with small inputs on a CPU; prints the page

Needs a checkout (25 MB without .git), no network and no installation of CoSTL. It needs Python 3.10 or later and the
packages torch (with CUDA), torchvision, open_clip_torch, av, h5py, jaxtyping, joblib, click, matplotlib, pyarrow and Jinja2,
with what they need themselves. Some sections also need decord, numkong or torchcodec, and are left out without them.

Each section has a time limit and runs in processes of its own, so that an error or a hang of the GPU ends one section. The
page is written again after each section.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from gpu_sections.schedule import SECTIONS, Section

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu.md"
PASSED, FAILED = "- passed: ", "- **failed**: "
Start = Callable[..., "subprocess.Popen[bytes]"]


INTRODUCTION = """\
# On a GPU

`tools/gpu_check.py` runs on one GPU what the tests can only imitate on a CPU, in at most eight minutes, and writes this
page. It needs no network and no installation of CoSTL. The top of the file names the packages that it needs. What needs a
package that is missing, or does not fit into the time, is left out, and the page says so. In a checkout:

    git archive --prefix=costl/ HEAD | gzip > costl.tar.gz                   # 20 MB, for the machine with the GPU
    tar xf costl.tar.gz && cd costl && python tools/gpu_check.py             # there: writes docs/gpu.md
    python tools/gpu_check.py --tiny                                         # the same code, small, on a CPU
"""
NOT_RUN = """\
**It has not been run on a GPU**, since none was at hand when this version was written. The sections say what it measures.
"""


def main(arguments: Sequence[str] | None = None, *, start: Start = subprocess.Popen) -> int:
    """Runs all sections; `start` starts a process as subprocess.Popen does.

    Returns 1 if a check failed, and 2 without a page if there is no GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="The page. [default: docs/gpu.md; with --tiny, standard output]")
    parser.add_argument("--minutes", type=float, default=8.0, help="What does not fit is left out; 0 writes the empty page.")
    parser.add_argument("--tiny", action="store_true", help="Small inputs on a CPU.")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.tiny else PAGE)
    if not options.minutes:
        _write(out, make_page({}))
        return 0
    results: dict[str, list[str]] = {}
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for section in SECTIONS:
            passed_s = time.monotonic() - started_s
            print(f"{passed_s:4.0f} s: {section.title}", file=sys.stderr)
            left_s = 60 * options.minutes - passed_s
            results[section.title] = run_section(section, Path(folder), left_s=left_s, tiny=options.tiny, start=start)
            if section is SECTIONS[0] and not results[section.title][0].startswith("|"):
                print("\n".join(results[section.title]), file=sys.stderr)
                return 2
            if out:
                _write(out, make_page(results, seconds=time.monotonic() - started_s))
    if not out:
        _write(out, make_page(results, seconds=time.monotonic() - started_s))
    return int(any(is_failure(line) for lines in results.values() for line in lines))


def run_section(section: Section, folder: Path, *, left_s: float, tiny: bool, start: Start = subprocess.Popen) -> list[str]:
    """The lines of a section, whatever happens in it. It begins only if half of its time is left."""
    missing = [package for package in section.packages if find_spec(package) is None]
    if missing:
        return [f"Left out: {' and '.join(missing)} not installed."]
    if left_s < section.seconds / 2:
        return [f"Left out: it takes up to {section.seconds:.0f} s, and {max(0.0, left_s):.0f} s were left."]
    limit_s = left_s if tiny else min(section.seconds, left_s)  # the limits are those of a machine with a GPU
    with tempfile.TemporaryDirectory(dir=folder) as own:
        logs = [Path(own) / f"{rank}.log" for rank in range(section.processes)]
        result = Path(own) / "result"
        commands = [_command(section, f"{result}-{rank}", folder, tiny=tiny) for rank in range(section.processes)]
        problem = run_processes(commands, logs, limit_s=limit_s, start=start)
        if isinstance(section.work, str):
            text = Path(f"{result}-0").read_text(encoding="utf-8") if Path(f"{result}-0").exists() else ""
        else:
            text = textwrap.indent("" if problem else logs[0].read_text(encoding="utf-8"), "    ")
    return [*text.strip("\n").splitlines(), *(["", f"{FAILED}{problem}"] if problem else [])]


def run_processes(commands: Sequence[Sequence[str]], logs: Sequence[Path], *, limit_s: float, start: Start) -> str:
    """Runs the commands at the same time, as the ranks of one group; returns what went wrong, or an empty text.

    When one fails or the time is over, all of them and their children are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    until_s = time.monotonic() + limit_s
    running = []
    try:
        for rank, (command, log) in enumerate(zip(commands, logs, strict=True)):
            environment = _environment(rank, len(commands), port)
            with log.open("wb") as file:
                options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
                running.append(start(command, cwd=ROOT, env=environment, start_new_session=True, **options))
        while True:
            codes = [process.poll() for process in running]
            for code, log in zip(codes, logs, strict=True):
                if code:
                    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    return f"exit code {code}: {lines[-1][:300] if lines else 'no output'}"
            if None not in codes:
                return ""
            if time.monotonic() > until_s:
                return f"stopped after {limit_s:.0f} s. What is above was finished."
            time.sleep(0.05)
    finally:
        for process in running:
            _kill(process)


def make_page(results: Mapping[str, Sequence[str]], *, seconds: float = 0.0) -> str:
    """The page with these lines of each section; without any, it says that nothing has been run."""
    lines = [line for of_section in results.values() for line in of_section]
    left_out = [title for title, of_section in results.items() if "".join(of_section).startswith("Left out: ")]
    parts = [INTRODUCTION, NOT_RUN]
    if results:
        passed = sum(line.startswith(PASSED) for line in lines)
        failed = sum(map(is_failure, lines))
        summary = f"Run on {datetime.date.today()} in {seconds:.0f} s: {passed} checks passed, {failed} failed."
        parts[1] = summary + (f" Left out: {', '.join(left_out)}." if left_out else "") + "\n"
    for section in SECTIONS:
        parts += [f"## {section.title}\n"]
        parts += [textwrap.fill(section.about, 118) + "\n"]
        parts += ["\n".join(results[section.title]) + "\n"] if section.title in results else []
    return "\n".join(parts)


def is_failure(line: str) -> bool:
    """Whether a line of the page reports a failed check."""
    return line.startswith(FAILED)


def _command(section: Section, result: str, folder: Path, *, tiny: bool) -> list[str]:
    if isinstance(section.work, str):
        size = "tiny" if tiny else "full"
        return [sys.executable, "-m", "gpu_sections", section.work, result, str(folder), size]
    if tiny:  # the benches have tests of their own
        return [sys.executable, "-m", "costl", *section.work[:2], "--help"]
    return [sys.executable, "-m", "costl", *section.work]


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment of a process: it finds CoSTL and the sections, and torchrun's variables if there are several."""
    paths = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    if count > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        environment |= {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    return environment


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process, and its children, which are in its session and may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write(path: Path | None, text: str) -> None:
    if path is None:
        print(text, end="")
        return
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
