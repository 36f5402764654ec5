"""Runs the `costl` command as a separate process that tests can kill or stop, and reads what it left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner
from preloaded import Preloaded

from costl.commands import main
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.world.write_world import WorldSettings, write_sample

ROOT = Path(__file__).parents[2]
FPS = 1.0  # twice the default, so that a kill can hit the middle of a video


def write_videos(folder: Path, count: int, *, processes: int = 1) -> Path:
    """Writes `count` rendered videos of 24 seconds and 64 x 64 pixels, with annotations and a small CLIP."""
    videos = {"train": count - 3, "val": 1, "test": 1, "test_unseen": 1}
    settings = WorldSettings(videos=videos, queries=1, train_queries=1, clips=(12, 12), side=64)
    write_sample(folder, settings=settings, processes=processes)
    return folder


def start_command(*arguments: object, cwd: Path, script: Path | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts `costl ARGUMENTS` in a new session; `script` is a program to run in place of `python -m costl`."""
    program = ["-m", "costl"] if script is None else [script]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return Preloaded([*program, *arguments], cwd=cwd, env=environment, **pipes, **options)


def finish(process: subprocess.Popen[str], *, within_s: float = 240) -> tuple[int, str, str]:
    """Waits until the process ends; -> its exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def kill(process: subprocess.Popen[str], *, whole_group: bool) -> None:
    """Sends SIGKILL to the command and its decode processes, or to the command only, which leaves them as orphans."""
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the command ended before the kill"


def run_command(*arguments: object, cwd: Path, within_s: float = 240, **options: Any) -> tuple[int, str, str]:
    return finish(start_command(*arguments, cwd=cwd, **options), within_s=within_s)


def run_in_process(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Runs the command inside this process, which is faster; for commands that no test kills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def json_summary(stdout: str) -> dict[str, Any]:
    """The summary that a command with --json prints as its last line."""
    return json.loads(stdout.splitlines()[-1])


def wait_for(condition: Callable[[], Any], *, within_s: float = 200) -> Any:
    """Calls `condition` until it returns a true value; -> that value."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    raise AssertionError(f"the condition was not met within {within_s} s")


def parts_of(cache: Path) -> list[Path]:
    """Every published part on disk, whether the index lists it or not."""
    return sorted(cache.with_name(f"{cache.name}.parts").glob("[!.]*.h5"))


def contents_of(cache: Path) -> dict[str, bytes]:
    """The bytes of the index, of every part, and of the query features."""
    words = cache.with_name(f"{cache.name}.parts") / "words"
    return {file.name: file.read_bytes() for file in [cache, *parts_of(cache), *sorted(words.glob("*.h5"))]}


def is_whole(part: Path) -> bool:
    """Whether the part matches its own checksum; reads it with h5py alone and not with the project's readers."""
    with h5py.File(part, "r") as file:
        content = b"".join(file[name][()].tobytes() for name in ("tokens", "joint", "times_s"))
        stated = bytes(file.attrs["checksum"]).decode()
    return hashlib.sha256(content).hexdigest() == stated


def check_cache(cache: Path, reported: Iterable[str]) -> None:
    """Checks that every part is whole, that every reported video has one, and that an existing index can be read."""
    names = {part.stem for part in parts_of(cache)}
    assert names >= set(reported) and all(map(is_whole, parts_of(cache)))
    if cache.exists():
        reader = CacheReader(cache)
        reader.verify_words()
        for name in reader.video_ids:
            reader.verify(name)


def part_stamps(cache: Path) -> Mapping[str, tuple[int, int]]:
    """The inode and modification time of each part, by name: they differ if a run wrote the part again."""
    return {part.stem: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts_of(cache)}


def run_contents(folder: Path) -> dict[str, object]:
    """All that a finished run folder holds, except clock times."""
    from costl.training.checkpoint import load_checkpoint

    contents: dict[str, object] = {}
    for name in ("best", "last"):
        tensors, meta = load_checkpoint(folder, name)
        meta.get("counts", {}).pop("seconds", None)
        contents |= {f"{name} {key}": comparable(value) for key, value in (tensors | meta).items()}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    contents["rows"] = [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in rows]
    for path in [folder / "config.yaml", folder / "curves.png", *sorted((folder / "eval-val").iterdir())]:
        contents[str(path.relative_to(folder))] = path.read_bytes()
    summary = json.loads((folder / "summary.json").read_text())
    contents["summary"] = {name: summary[name] for name in summary if name not in ("seconds", "run")}
    return contents


def comparable(value: Any) -> Any:
    """The value with every tensor in it replaced by its type, shape and bytes."""
    if hasattr(value, "numpy"):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: comparable(inner) for key, inner in value.items()}
    return [comparable(inner) for inner in value] if isinstance(value, list | tuple) else value
