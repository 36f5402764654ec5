"""The run folder: what training writes there and evaluation trusts.

runs/<name>/
    config.yaml         every setting, resolved
    run.json            the cache, its fingerprint, patch grid and CLIP, a digest of each split's annotations, the versions
    metrics.jsonl       one row an epoch
    best.safetensors    the weights to evaluate
    last.safetensors    all that resuming needs
    curves.png          losses, learning rate and validation by epoch, when it has ended
    summary.json        how it ended; its absence says that the run can be resumed
    eval-<split>/       metrics.json, predictions.jsonl, predictions.parquet, predictions.png; of val when it has ended
    report-<split>.html the page of costl report
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from costl.config import Config, load_config
from costl.data.annotations import parse_jsonl
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.formats.files import alone, publish, sweep
from costl.pipeline.formats.strict_json import read_json, shown

RUNS = Path("runs")
LONGEST_WINDOW = 512  # clips that are seen at once, however long the videos of training were: it bounds the memory
_SHORTEST_WINDOW = 32
LIBRARIES = ("costl", "torch", "numpy", "h5py")
_WRITTEN = (
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "best.safetensors",
    "last.safetensors",
    "curves.png",
    "summary.json",
)


@dataclass(frozen=True)
class Run:
    """One training run on disk: its folder, its settings, and the cache it was trained from.

    `patch_grid` and `source` (model and weights of its CLIP) are what asking a new video takes besides, `longest_clips`
    the length of the longest video of training; empty in a run of an earlier version.
    """

    folder: Path
    config: Config
    cache: Path
    fingerprint: Mapping[str, Any]
    annotations: Mapping[str, str]
    patch_grid: tuple[int, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    longest_clips: int = 0

    @property
    def settled(self) -> Config:
        """The settings with `predict.window_clips` as long as the longest video of training, where it was left open.

        On a film made of the sample world's test videos (683 clips, trained on 24 to 32) windows of 32 clips found 66 %
        of the moments among ten, of 64 clips 55 %: a model is best at lengths it knows.
        """
        if self.config.predict.window_clips is not None or not self.longest_clips:
            return self.config
        clips = min(LONGEST_WINDOW, max(_SHORTEST_WINDOW, -(-self.longest_clips // 4) * 4))
        return replace(self.config, predict=replace(self.config.predict, window_clips=clips))

    @property
    def finished(self) -> bool:
        """Whether training came to its own end."""
        return (self.folder / "summary.json").is_file()


def create_run(folder: Path | None, config: Config, features: CacheReader) -> Run:
    """Makes the folder (by default a new `runs/<cache>-<date>-<time>`) and writes config.yaml and run.json.

    Raises UsageError where something lies there already, CacheError while another training is at work there, CostlError
    when the disk refuses.
    """
    folder = _new_folder(RUNS, features.path.stem) if folder is None else _made(folder)
    about = {
        "cache": str(features.path.resolve()),
        "fingerprint": features.fingerprint,
        "patch_grid": features.patch_grid,
        "source": features.source,
        "longest_clips": _longest(features),
        "annotations": annotation_digests(features),
        "started": datetime.now().astimezone().isoformat(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
    }
    with alone(folder):
        _refuse_occupied(folder, config)
        publish(folder / "config.yaml", config.to_yaml().encode())
        publish(folder / "run.json", (json.dumps(about, indent=2) + "\n").encode())
    return read_run(folder)


def sweep_run(folder: Path) -> None:
    """Removes what a training that was killed has left half-written."""
    sweep(folder, *_WRITTEN)


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises UsageError when there is none, CacheError when its files are damaged."""
    if not (folder / "run.json").is_file():
        raise UsageError(f"{folder}: not a run, run.json is missing. Give a folder that costl train wrote.")
    try:
        about = read_json((folder / "run.json").read_text(encoding="utf-8"))
        cache, fingerprint, annotations = Path(about["cache"]), dict(about["fingerprint"]), dict(about["annotations"])
        patch_grid, source = tuple(map(int, about.get("patch_grid", ()))), dict(about.get("source", {}))
        longest = int(about.get("longest_clips", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CacheError(f"{folder / 'run.json'}: damaged ({shown(error, 200)}). Train again.") from error
    return Run(
        folder, load_config(folder / "config.yaml"), cache, fingerprint, annotations, patch_grid, source, longest
    )


def newest_run(runs: Path = RUNS) -> Run:
    """The run that was started last among those with weights to evaluate. Raises UsageError where there is none."""
    started = {}
    for weights in runs.glob("*/best.safetensors"):
        try:
            about = read_json((weights.parent / "run.json").read_text(encoding="utf-8"))
            started[weights.parent] = datetime.fromisoformat(about["started"]).timestamp()
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue  # no run of ours, or one that somebody took apart: asking for it by name says what is wrong
    if not started:
        raise UsageError(
            f"{runs}/: no trained run. Train one with costl train --cache feats.h5, or name it with --run."
        )
    return read_run(max(started, key=lambda folder: started[folder]))


def open_cache(run: Run, override: Path | None = None) -> CacheReader:
    """The cache a run was trained from, wherever it is now. Raises CacheError naming what differs from the run's."""
    path = override or run.cache
    if not path.is_file():
        raise CacheError(f"{path}: no cache there, {run.folder} was trained from it. Say where it is now with --cache.")
    features = CacheReader(path)
    differences = explain_difference(features.fingerprint, run.fingerprint)
    if differences:
        raise CacheError(
            f"{path} holds other features than {run.folder} was trained on ({'; '.join(differences)}). "
            "Give the cache of the run with --cache, or train on this one."
        )
    return features


def _longest(features: CacheReader) -> int:
    """Clips of the longest video that is learned from."""
    text = features.annotations("train") if "train" in features.splits else ""
    asked = {query.vid for query in parse_jsonl(text, "train.jsonl")}
    return max((row.clips for row in features.rows if row.ok and row.name in asked), default=0)


def annotation_digests(features: CacheReader) -> dict[str, str]:
    """sha256 of every split's annotations: resuming is exact only with the same ones."""
    return {split: hashlib.sha256(features.annotations(split).encode()).hexdigest() for split in features.splits}


def write_summary(run: Run, summary: Any) -> None:
    """Marks the run as finished; `summary` is a dataclass."""
    publish(run.folder / "summary.json", (json.dumps(asdict(summary), indent=2, default=str) + "\n").encode())


def read_rows(run: Run, *, up_to: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of the first `up_to` epochs. Raises CacheError when they are not all there."""
    path = run.folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if up_to else []
        rows = [json.loads(line) for line in lines[:up_to]]
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path}: cannot be read ({error}). Train again.") from error
    if len(rows) < up_to:
        raise CacheError(f"{path}: {len(rows)} rows, expected {up_to}, one an epoch. Train again.")
    return rows


def write_rows(run: Run, rows: list[dict[str, Any]]) -> None:
    """All rows so far, at once or not at all."""
    publish(run.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _new_folder(runs: Path, stem: str) -> Path:
    name = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise CostlError(
                f"{folder}: cannot be made ({error.strerror}). Choose another place with --out."
            ) from error
        return folder
    raise CostlError(f"{runs}: a thousand runs were started this second. Name one with --out.")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: no place for a run ({error.strerror}). Choose another --out.") from error
    return folder


def _refuse_occupied(folder: Path, config: Config) -> None:
    """A start of the same settings that was killed before it had its run.json does not count."""
    try:
        sweep_run(folder)
        found = {path.name: path for path in folder.iterdir()}
        begun = found.pop("config.yaml", None)
        occupied = found or (begun and begun.read_text(encoding="utf-8") != config.to_yaml())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no place for a run ({error}). Choose another --out.") from error
    if occupied:
        raise UsageError(f"{folder}: holds files already. Continue it with --resume {folder}, or choose another --out.")


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


LEGACY = "legacy: chosen on test"


def legacy_label(config: Config) -> str:
    """What stands beside every number of a run whose weights were chosen on the test split; empty for others."""
    if config.train.select_on != "test":
        return ""
    return f"{LEGACY} (train.select_on is test), so that its numbers there are too good."
