"""The history of a cache: one JSON line per extraction with its results and speed, in `feats.h5.runs.jsonl`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.run.throughput import Meter

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder


def runs_file(cache: Path) -> Path:
    """The file that holds the history of the cache."""
    return cache.parent / f"{cache.name}.runs.jsonl"


@contextmanager
def recorded_run(cache: Path, encoders: Sequence[CLIPEncoder]) -> Iterator[Meter]:
    """A meter for one run; a line is appended to the history when the run ends, also by an exception.

    The line is written in one piece after the existing ones. A full disk does not fail the run.
    """
    meter = Meter()
    began_s = time.monotonic()
    ended = "done"
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        yield meter
    except BaseException as error:
        ended = "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped: {error}"
        raise
    finally:
        seconds = max(time.monotonic() - began_s, 1e-9)
        line = {"started": started, "ended": ended} | _measurements(meter, encoders, seconds)
        with suppress(OSError):
            _append(runs_file(cache), json.dumps(line).encode() + b"\n")


def _measurements(meter: Meter, encoders: Sequence[CLIPEncoder], seconds: float) -> dict[str, Any]:
    slowest, waiting = meter.bottleneck(seconds)
    return {
        "seconds": round(seconds, 3),
        "videos": dict(meter.videos),
        "frames": meter.frames,
        "frames_per_s": round(meter.frames / seconds, 3),
        "bottleneck": slowest,
        "waiting": round(waiting, 4),
        "batch": meter.batches,
        "devices": [str(encoder.device) for encoder in encoders],
        "precision": encoders[0].precision,
    }


def _append(path: Path, line: bytes) -> None:
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read() not in (b"", b"\n"):  # a killed run left half a line, which must not swallow this one
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def last_run(cache: Path) -> dict[str, Any] | None:
    """The line of the newest run, None if there is none. Lines cut by a crash are skipped."""
    try:
        lines = runs_file(cache).read_bytes().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            run = json.loads(line)
            if isinstance(run, dict):
                return run
    return None


def describe_run(run: dict[str, Any]) -> str:
    """A line of the history as a sentence; "" for a line that another version wrote."""
    try:
        videos = ", ".join(f"{count} {status}" for status, count in run["videos"].items() if count)
        details = [f"{run['frames']} frames, {run['frames_per_s']:.3g} a second"]
        if run["frames"]:
            details.append(f"waiting for {run['bottleneck']} {100 * run['waiting']:.0f} % of the time")
        batches = " and ".join(map(str, sorted(set(run["batch"]))))
        in_batches = f" in batches of {batches}" if batches else ""
        details.append(f"{run['precision']} on {', '.join(run['devices'])}{in_batches}")
        return (
            f"Last run: {run['started']}, {run['ended']} after {run['seconds']:.1f} s; videos: {videos or 'none'}; "
            f"{', '.join(details)}."
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
