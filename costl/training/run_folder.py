"""The run folder: the files that training writes and that evaluation, asking and resuming read.

runs/<name>/
    config.yaml         every setting, resolved
    run.json            the cache, its fingerprint, patch grid and CLIP, a digest of each split's annotations, the versions
    metrics.jsonl       one row an epoch
    best.safetensors    the weights to evaluate
    last.safetensors    all that resuming needs
    curves.png          losses, learning rate and validation by epoch, written at the end
    folds/              predictions of the cross-validation, without a split to validate on
    summary.json        the report of the training, written last; without it the run can be resumed
    eval-<split>/       metrics.json, predictions.jsonl, predictions.parquet, predictions.png; training writes those of val
    report-<split>.html the page of costl report
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from costl.config import Config, load_config
from costl.data.annotations import Query, parse_jsonl
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, next_step
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.formats.files import locked_folder, publish, remove_half_written
from costl.pipeline.formats.strict_json import abbreviated, read_json

RUNS = Path("runs")
MAX_WINDOW_CLIPS = 512  # the most clips in one forward of prediction, for a bound on its memory
_MIN_WINDOW_CLIPS = 32
LIBRARIES = ("costl", "torch", "numpy", "h5py")
_TRAINING_FILES = (
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

    `patch_grid` and `source` (model and weights of its CLIP) are needed to extract new videos; `longest_clips` is the
    length of the longest training video, `moment_grid_s` the length of a clip if all training moments start and end with
    clips, else 0. They are empty in a run of an earlier version. `start` has the trained model that
    training started from and the sha256 of its weights; it is empty for random weights.
    """

    folder: Path
    config: Config
    cache: Path
    fingerprint: Mapping[str, Any]
    annotations: Mapping[str, str]
    patch_grid: tuple[int, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    longest_clips: int = 0
    moment_grid_s: float = 0.0
    start: Mapping[str, str] = field(default_factory=dict)

    @property
    def resolved_config(self) -> Config:
        """The settings, with what the training data decide in place of None.

        `predict.window_clips` becomes the length of the longest training video. A model is best at lengths it was trained
        on: on a film made of the sample world's test videos (683 clips, trained on 24 to 32), the first ten moments
        contained 66 % of the true ones with windows of 32 clips, 55 % with 64. `predict.round_s` becomes `moment_grid_s`.
        """
        predict = self.config.predict
        if predict.round_s is None:
            predict = replace(predict, round_s=self.moment_grid_s)
        if predict.window_clips is None and self.longest_clips:
            clips = min(MAX_WINDOW_CLIPS, max(_MIN_WINDOW_CLIPS, -(-self.longest_clips // 4) * 4))
            predict = replace(predict, window_clips=clips)
        return replace(self.config, predict=predict)

    @property
    def finished(self) -> bool:
        """Whether training ended by itself, so that nothing is left to resume."""
        return (self.folder / "summary.json").is_file()


def create_run(
    folder: Path | None, config: Config, features: CacheReader, start: Mapping[str, str] | None = None
) -> Run:
    """Creates the folder (by default `runs/<cache>-<date>-<time>`) and writes config.yaml and run.json.

    Raises UsageError when the folder holds other files, CacheError while another training is writing there, CostlError
    when a file cannot be written.
    """
    folder = _create_folder(folder, features.path.stem)
    queries = parse_jsonl(features.annotations("train"), "train.jsonl") if "train" in features.splits else []
    about = {
        "cache": str(features.path.resolve()),
        "fingerprint": features.fingerprint,
        "patch_grid": features.patch_grid,
        "source": features.source,
        "longest_clips": _longest_video(queries, features),
        "moment_grid_s": _moment_grid_s(queries, clip_s=1 / features.fps),
        "annotations": annotation_digests(features),
        "start": dict(start or {}),
        "started": datetime.now().astimezone().isoformat(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
    }
    with locked_folder(folder):
        _refuse_occupied(folder, config)
        publish(folder / "config.yaml", config.to_yaml().encode())
        publish(folder / "run.json", (json.dumps(about, indent=2) + "\n").encode())
    return read_run(folder)


def sweep_run(folder: Path) -> None:
    """Removes the partial files of a training that was killed."""
    remove_half_written(folder, *_TRAINING_FILES)


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises UsageError when there is none, CacheError when its files are damaged."""
    if not (folder / "run.json").is_file():
        raise UsageError(f"{folder}: not a run, run.json is missing. Give a folder that costl train wrote.")
    try:
        about = read_json((folder / "run.json").read_text(encoding="utf-8"))
        cache = Path(about["cache"])
        fingerprint = dict(about["fingerprint"])
        annotations = dict(about["annotations"])
        patch_grid = tuple(map(int, about.get("patch_grid", ())))
        source = dict(about.get("source", {}))
        longest_clips = int(about.get("longest_clips", 0))
        moment_grid_s = float(about.get("moment_grid_s", 0.0))
        if moment_grid_s and not 0.001 <= moment_grid_s < math.inf:
            raise ValueError(f"moment_grid_s is {moment_grid_s}")
        start = dict(about.get("start", {}))
    except OSError as error:
        raise CacheError(f"{folder / 'run.json'}: cannot be read ({error.strerror}). {next_step(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CacheError(f"{folder / 'run.json'}: damaged ({abbreviated(error, 200)}). Train again.") from error
    config = load_config(folder / "config.yaml", stored=True)
    return Run(folder, config, cache, fingerprint, annotations, patch_grid, source, longest_clips, moment_grid_s, start)


def newest_run(runs: Path = RUNS) -> Run:
    """The run with weights that was started last. Raises UsageError when there is none."""
    folder = _newest_with_weights(runs)
    if folder is None:
        raise UsageError(
            f"{runs}/: no trained run. Train one with costl train --cache feats.h5, or name it with --run."
        )
    return read_run(folder)


def has_run(runs: Path = RUNS) -> bool:
    """Whether there is a run with weights."""
    return _newest_with_weights(runs) is not None


def runs_newest_first(runs: Path) -> list[Path]:
    """The folders of all runs, also of unfinished ones: the one that was started last is the first."""
    started = {}
    for path in runs.glob("*/run.json"):
        try:
            if path.is_file():
                about = read_json(path.read_text(encoding="utf-8"))
                started[path.parent] = datetime.fromisoformat(about["started"]).timestamp()
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue  # not a run, or a damaged one: read_run of its name reports the reason
    return sorted(started, key=lambda folder: (started[folder], folder), reverse=True)


def _newest_with_weights(runs: Path) -> Path | None:
    return next((folder for folder in runs_newest_first(runs) if (folder / "best.safetensors").is_file()), None)


def open_cache(run: Run, override: Path | None = None) -> CacheReader:
    """The cache of a run, or the one at `override`. Raises CacheError that names what differs from the cache of the run."""
    path = override or run.cache
    if not path.is_file():
        raise CacheError(
            f"{path}: no cache there, and {run.folder} was trained from it. Give its new path with --cache."
        )
    features = CacheReader(path)
    differences = explain_difference(features.fingerprint, run.fingerprint)
    if differences:
        raise CacheError(
            f"{path} holds other features than {run.folder} was trained on ({'; '.join(differences)}). "
            "Give the cache of the run with --cache, or train on this one."
        )
    return features


def _longest_video(queries: Sequence[Query], features: CacheReader) -> int:
    """The number of clips of the longest video of the queries."""
    vids = {query.vid for query in queries}
    return max((row.clips for row in features.rows if row.ok and row.name in vids), default=0)


def _moment_grid_s(queries: Sequence[Query], *, clip_s: float) -> float:
    """The length of a clip if all moments start and end with clips, or with the video; else 0."""
    times = [(time, query.duration_s) for query in queries for window in query.windows for time in window]
    is_on_grid = [time == end or math.isclose(time, round(time / clip_s) * clip_s) for time, end in times]
    return clip_s if times and all(is_on_grid) else 0.0


def annotation_digests(features: CacheReader) -> dict[str, str]:
    """The sha256 of each split's annotations: resuming is exact only with the same ones."""
    return {split: hashlib.sha256(features.annotations(split).encode()).hexdigest() for split in features.splits}


def write_summary(run: Run, summary: Any) -> None:
    """Marks the run as finished; `summary` is a dataclass."""
    publish(run.folder / "summary.json", (json.dumps(asdict(summary), indent=2, default=str) + "\n").encode())


def read_rows(run: Run, *, up_to: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl for the first `up_to` epochs. Raises CacheError when some are missing."""
    path = run.folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if up_to else []
        rows = [json.loads(line) for line in lines[:up_to]]
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path}: cannot be read ({error}). Train again.") from error
    if len(rows) < up_to:
        raise CacheError(f"{path}: {len(rows)} rows, expected {up_to}, one for each epoch. Train again.")
    return rows


def write_rows(run: Run, rows: list[dict[str, Any]]) -> None:
    """Writes metrics.jsonl, completely or not at all."""
    publish(run.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _create_folder(folder: Path | None, stem: str) -> Path:
    """Creates `folder`, or a new one in `runs/`."""
    name = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    chosen = folder or RUNS / name
    number = 1
    while True:
        try:
            chosen.mkdir(parents=True, exist_ok=folder is not None)
            return chosen
        except OSError as error:
            if folder is not None or not isinstance(error, FileExistsError):
                raise UsageError(f"{chosen}: cannot hold a run ({error.strerror}). Choose another --out.") from error
            number += 1
            chosen = RUNS / f"{name}-{number}"  # another training was started in this second


def _refuse_occupied(folder: Path, config: Config) -> None:
    """Only a config.yaml with the same settings does not count: a training was killed before it wrote run.json."""
    try:
        sweep_run(folder)
        paths = {path.name: path for path in folder.iterdir()}
        old_config = paths.pop("config.yaml", None)
        occupied = paths or (old_config and old_config.read_text(encoding="utf-8") != config.to_yaml())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: cannot hold a run ({error}). Choose another --out.") from error
    if occupied:
        raise UsageError(f"{folder}: holds files already. Continue it with --resume {folder}, or choose another --out.")


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


LEGACY = "legacy: chosen on test"


def legacy_label(config: Config) -> str:
    """The label for all numbers of a run whose weights were chosen on the test split; empty for other runs."""
    if config.train.select_on != "test":
        return ""
    return f"{LEGACY} (train.select_on is test), so that its numbers there are too good."
