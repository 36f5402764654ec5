"""What each run on a cache did and how fast, one JSON line a run beside it: `feats.h5.runs.jsonl`."""

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

from costl.pipeline.run.meter import Meter

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import Clip

_VERSIONS = ("costl", "torch", "open_clip_torch", "h5py", "numpy")


def runs_file(cache: Path) -> Path:
    """Where the runs on the cache are told."""
    return cache.with_name(f"{cache.name}.runs.jsonl")


@contextmanager
def recorded(cache: Path, clips: Sequence[Clip]) -> Iterator[Meter]:
    """A meter for one run; whatever ends the run, a line about it is appended when it is over.

    The line is written in one piece, after what is there; a disk that takes no more does not spoil the run.
    """
    meter, began, ended = Meter(), time.monotonic(), "done"
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        yield meter
    except BaseException as error:
        ended = "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped: {error}"
        raise
    finally:
        line = {"started": started, "ended": ended} | _told(meter, clips, time.monotonic() - began)
        with suppress(OSError):
            _append(runs_file(cache), json.dumps(line).encode() + b"\n")


def last_run(cache: Path) -> dict[str, Any] | None:
    """The line of the newest run; None where no run is known. Lines cut by a crash are passed over."""
    try:
        lines = runs_file(cache).read_bytes().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return None


def in_words(run: dict[str, Any]) -> str:
    """A run in a sentence or two; "" for a line that another version wrote."""
    try:
        videos = ", ".join(f"{count} {status}" for status, count in run["videos"].items() if count)
        waits = f"waiting for {run['bottleneck']} {100 * run['waiting']:.0f} % of the time" if run["frames"] else ""
        parts = [f"{run['frames']} frames, {run['frames_per_s']:.3g} a second", waits, _devices_in_words(run)]
        return (
            f"Last run: {run['started']}, {run['ended']} after {run['seconds']:.1f} s; videos: {videos or 'none'}; "
            f"{', '.join(part for part in parts if part)}."
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def _devices_in_words(run: dict[str, Any]) -> str:
    batches = " and ".join(str(batch) for batch in sorted(set(run["batch"])))
    return f"{run['precision']} on {', '.join(run['devices'])}" + (f" in batches of {batches}" if batches else "")


def _told(meter: Meter, clips: Sequence[Clip], seconds: float) -> dict[str, Any]:
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
        "devices": [str(clip.device) for clip in clips],
        "precision": clips[0].precision,
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
    """The most memory that this process has held, and the largest of those it has started and outlived."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    who = {"here": resource.RUSAGE_SELF, "decode": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(one).ru_maxrss * unit for name, one in who.items()}


def _append(path: Path, line: bytes) -> None:
    # A run that was killed may have left half a line: it must not swallow this one.
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, b"\n" * cut + line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
