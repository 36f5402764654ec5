"""The command as a process of its own, to be killed, stopped and starved; and what a cache on disk then holds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.pipeline.world.sample import WorldSettings, write_sample

ROOT = Path(__file__).parents[2]
FPS = 1.0  # twice as many frames as by default: long enough for a kill to hit a video halfway


def write_videos(folder: Path, count: int, *, processes: int = 1) -> Path:
    """`count` rendered videos of 24 seconds and 64 pixels with their annotations and a small CLIP."""
    videos = {"train": count - 3, "val": 1, "test": 1, "test_unseen": 1}
    settings = WorldSettings(videos=videos, queries=1, train_queries=1, clips=(12, 12), side=64)
    write_sample(folder, settings=settings, processes=processes)
    return folder


def start(*arguments: object, cwd: Path, script: Path | None = None, **options: Any) -> subprocess.Popen[str]:
    """`costl ARGUMENTS` in a session of its own; `script` is a program that calls the command after its own fashion."""
    program = ["-m", "costl"] if script is None else [str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen[str], *, within_s: float = 240) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def run(*arguments: object, cwd: Path, within_s: float = 240, **options: Any) -> tuple[int, str, str]:
    return finish(start(*arguments, cwd=cwd, **options), within_s=within_s)


def here(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """The command without a process of its own, which is quicker; for what nobody kills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def told(out: str) -> dict[str, Any]:
    """What a command with --json says at its end."""
    return json.loads(out.splitlines()[-1])


def wait_for(condition: Callable[[], Any], *, within_s: float = 200) -> Any:
    """What `condition` gives as soon as it gives something."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.002)
    raise AssertionError("waited in vain")


def parts_of(cache: Path) -> list[Path]:
    """Every part that has its name, whatever the index says."""
    return sorted(cache.with_name(f"{cache.name}.parts").glob("[!.]*.h5"))


def contents_of(cache: Path) -> dict[str, bytes]:
    """The bytes of the index, of every part, and of the words."""
    words = cache.with_name(f"{cache.name}.parts") / "words"
    return {file.name: file.read_bytes() for file in [cache, *parts_of(cache), *sorted(words.glob("*.h5"))]}


def is_whole(part: Path) -> bool:
    """By the checksum that the part itself states; with h5py alone, none of our readers."""
    with h5py.File(part, "r") as file:
        tokens, times_s = file["tokens"][()], file["times_s"][()]
        stated = bytes(file.attrs["checksum"]).decode()
    return hashlib.sha256(tokens.tobytes() + times_s.tobytes()).hexdigest() == stated


def written(cache: Path) -> Mapping[str, tuple[int, int]]:
    """Which file each part is and when it was written: another file after a run was made again by it."""
    return {part.stem: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts_of(cache)}


def lasting(folder: Path) -> dict[str, object]:
    """All that a finished run holds, but for the clock."""
    from costl.training.checkpoint import load_checkpoint

    found: dict[str, object] = {}
    for name in ("best", "last"):
        tensors, meta = load_checkpoint(folder, name)
        meta.get("counts", {}).pop("seconds", None)
        found |= {f"{name} {key}": plain(value) for key, value in (tensors | meta).items()}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["rows"] = [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in rows]
    for path in [folder / "config.yaml", folder / "curves.png", *sorted((folder / "eval-val").iterdir())]:
        found[str(path.relative_to(folder))] = path.read_bytes()
    summary = json.loads((folder / "summary.json").read_text())
    found["summary"] = {name: summary[name] for name in summary if name not in ("seconds", "run")}
    return found


def plain(value: Any) -> Any:
    """Tensors as their bytes, however deep."""
    if hasattr(value, "numpy"):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
