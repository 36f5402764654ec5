"""The history of a cache: one JSON line per extraction with its results and speed, in `feats.h5.runs.jsonl`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.run.throughput import Meter

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

_VERSIONS = ("costl", "torch", "open_clip_torch", "h5py", "numpy")


def runs_file(cache: Path) -> Path:
    """The file that holds the history of the cache."""
    return cache.with_name(f"{cache.name}.runs.jsonl")


@contextmanager
def recorded_run(cache: Path, encoders: Sequence[CLIPEncoder]) -> Iterator[Meter]:
    """A meter for one run; a line is appended to the history when the run ends, also by an exception.

    The line is written in one piece after the existing ones. A full disk does not fail the run.
    """
    meter = Meter()
    began = time.monotonic()
    ended = "done"
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        yield meter
    except BaseException as error:
        ended = "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped: {error}"
        raise
    finally:
        line = {"started": started, "ended": ended} | _measurements(meter, encoders, time.monotonic() - began)
        with suppress(OSError):
            _append(runs_file(cache), json.dumps(line).encode() + b"\n")


def _measurements(meter: Meter, encoders: Sequence[CLIPEncoder], seconds: float) -> dict[str, Any]:
    waited_s = meter.waited_s()
    shares = meter.shares(waited_s, max(seconds, 1e-9))
    slowest = max(shares, key=lambda what: shares[what])
    return {
        "seconds": round(seconds, 3),
        "videos": dict(meter.videos),
        "frames": meter.frames,
        "frames_per_s": round(meter.frames / max(seconds, 1e-9), 3),
        "waited_s": {what: round(spent_s, 3) for what, spent_s in waited_s.items()},
        "bottleneck": slowest,
        "waiting": round(shares[slowest], 4),
        "batch": meter.batches,
        "processes": meter.processes,
        "devices": [str(encoder.device) for encoder in encoders],
        "precision": encoders[0].precision,
        "decoders": dict(meter.decoders),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in _VERSIONS}},
        "peak_bytes": _peak_bytes(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _peak_bytes() -> dict[str, int]:
    """Peak memory of this process, and of the largest of its child processes that have ended."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    whose = {"here": resource.RUSAGE_SELF, "decode": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(who).ru_maxrss * unit for name, who in whose.items()}


def _append(path: Path, line: bytes) -> None:
    # A killed run may have left half a line, which must not swallow this one.
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, b"\n" * cut + line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        speed = f"{run['frames']} frames, {run['frames_per_s']:.3g} a second"
        waits = f"waiting for {run['bottleneck']} {100 * run['waiting']:.0f} % of the time" if run["frames"] else ""
        details = ", ".join(part for part in (speed, waits, _describe_devices(run)) if part)
        return (
            f"Last run: {run['started']}, {run['ended']} after {run['seconds']:.1f} s; videos: {videos or 'none'}; "
            f"{details}."
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def _describe_devices(run: dict[str, Any]) -> str:
    batches = " and ".join(str(batch) for batch in sorted(set(run["batch"])))
    return f"{run['precision']} on {', '.join(run['devices'])}" + (f" in batches of {batches}" if batches else "")
