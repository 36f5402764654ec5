"""The whole pipeline in one call: a sample world, its features, two trained models, two references, one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from costl.experiments.scored_runs import SplitScores, score, train_unless_finished, with_stage_prefix
from costl.experiments.untrained_baselines import chance, choose_zero_shot, zero_shot
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.world.write_world import WorldSettings, write_sample

FOLDER = Path("costl-quickstart")
SPLITS = ("test", "test_unseen")
COLUMNS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
# The full model is trained last, so that it is the newest run, which other commands use by default.
MODELS: Mapping[str, tuple[str, ...]] = {
    "CoSTL without spatial encoder": ("spatial.steps=0",),
    "CoSTL": (),
}


@dataclass(frozen=True)
class Results:
    """`rows`: headline numbers (percent) by method and split; `how` each reference was made; the pictures of predictions."""

    rows: Mapping[str, Mapping[str, Mapping[str, float]]]
    how: Mapping[str, str]
    pictures: tuple[Path, ...]
    notes: tuple[str, ...] = field(default=())
    exit_code = 0

    def lines(self) -> list[str]:
        """The rows for the terminal, the splits side by side."""
        width = max(map(len, self.rows)) + 2
        splits = "".join(f"{split:>{len(COLUMNS) * 9}}" for split in SPLITS)
        lines = [f"{'':{width}}{splits}", f"{'':{width}}" + "".join(f"{name:>9}" for name in COLUMNS) * len(SPLITS)]
        for name, row in self.rows.items():
            lines.append(
                f"{name:{width}}" + "".join(_cell(row[split], key) for split in SPLITS for key in COLUMNS.values())
            )
        return lines

    def data(self) -> dict[str, Any]:
        """The rows."""
        return dict(self.rows)

    def messages(self) -> list[str]:
        """How the references were made, the notes, and the pictures."""
        how = (f"{name}: {how}." for name, how in self.how.items())
        return [*how, *self.notes, *(f"Picture: {path}" for path in self.pictures)]


def quickstart(
    folder: Path = FOLDER,
    *,
    world: WorldSettings | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> Results:
    """Renders a sample world into `folder`, extracts it, trains with and without the spatial encoder, and compares.

    Steps that an earlier call with the same arguments finished are not repeated, and an interrupted one is resumed.
    `overrides` are settings of training such as "train.epochs=5". Raises UsageError where the folder has other files or
    was made with other arguments.
    """
    report_progress = progress or (lambda _: None)
    _render(folder / "videos", world or WorldSettings(), report_progress)
    report = extract(folder / "videos", out=folder / "feats.h5", device=device, progress=report_progress)
    if report.failed:
        raise CostlError(f"{folder / 'videos'}: {len(report.failed)} videos failed: {report.failed[0].reason}")
    features = CacheReader(report.cache)
    scores = {
        name: _train_and_score(
            folder / "runs" / _slug(name),
            features,
            [*overrides, *changes],
            device,
            with_stage_prefix(name, report_progress),
        )
        for name, changes in MODELS.items()
    }
    results = _compare(features, scores)
    publish(folder / "results.json", (json.dumps(asdict(results), indent=2, default=str) + "\n").encode())
    return results


def _render(folder: Path, world: WorldSettings, report_progress: ProgressCallback) -> None:
    """Writes the sample world unless the folder has it. Its settings are written last: they mark it as complete."""
    settings_file = folder / "world.json"
    settings = json.loads(json.dumps(asdict(world)))
    if settings_file.is_file():
        if json.loads(settings_file.read_text(encoding="utf-8")) != settings:
            raise UsageError(
                f"{folder}: holds another sample world. Choose another folder with --out, or delete this one."
            )
        return
    write_sample(folder, settings=world, progress=lambda done, total: report_progress(Progress("render", done, total)))
    publish(settings_file, json.dumps(settings).encode())


def _train_and_score(
    folder: Path, features: CacheReader, overrides: Sequence[str], device: str, progress: ProgressCallback | None
) -> dict[str, SplitScores]:
    """Trains the run in `folder` unless it is finished, and evaluates it on every split."""
    train_unless_finished(folder, features, overrides=overrides, device=device, progress=progress)
    return {split: score(folder, split, device=device, progress=progress) for split in SPLITS}


def _compare(features: CacheReader, scores: Mapping[str, Mapping[str, SplitScores]]) -> Results:
    settings, how = choose_zero_shot(features)
    references = {split: [chance(features, split), zero_shot(features, split, settings, how)] for split in SPLITS}
    rows = {
        reference.name: {split: references[split][i].brief for split in SPLITS}
        for i, reference in enumerate(references[SPLITS[0]])
    }
    for name, by_split in scores.items():
        rows[name] = {split: split_scores.brief for split, split_scores in by_split.items()}
    return Results(
        rows=rows,
        how={reference.name: reference.how for reference in references[SPLITS[0]]},
        pictures=tuple(split_scores.folder / "predictions.png" for split_scores in scores["CoSTL"].values()),
        notes=tuple(note for split_scores in scores["CoSTL"].values() for note in split_scores.notes),
    )


def _cell(brief: Mapping[str, float], key: str) -> str:
    # A very small world may have no clip with a rating of "very good".
    return f"{brief[key]:>9.1f}" if key in brief else f"{'-':>9}"


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
