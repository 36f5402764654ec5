"""The whole program in one call: a sample world, its features, two models, two references, one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from costl.evaluate import Evaluation, evaluate
from costl.experiments.references import chance, choose_zero_shot, zero_shot
from costl.experiments.repeat import trained
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.world.sample import WorldSettings, write_sample

FOLDER = Path("costl-quickstart")
SPLITS = ("test", "test_unseen")
COLUMNS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
# The same model without its spatial encoder, and the model: last, so that the newest run is what is asked afterwards.
MODELS: Mapping[str, tuple[str, ...]] = {
    "CoSTL without spatial encoder": ("spatial.steps=0",),
    "CoSTL": (),
}


@dataclass(frozen=True)
class Results:
    """`rows`: a method's headline numbers (percent) on each split; `how` the references were made; the pictures."""

    rows: Mapping[str, Mapping[str, Mapping[str, float]]]
    how: Mapping[str, str]
    pictures: tuple[Path, ...]
    notes: tuple[str, ...] = field(default=())
    exit_code = 0

    def lines(self) -> list[str]:
        """The rows for the terminal: the numbers of each split side by side."""
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
    progress: Tell | None = None,
) -> Results:
    """Renders a sample world into `folder`, extracts it, trains with and without the spatial encoder, and compares.

    What an earlier call with the same arguments finished is not done again; what it was in the middle of is continued.
    `overrides` are settings of training such as "train.epochs=5". Raises UsageError where the folder holds something
    else, or was made with other arguments.
    """
    tell = progress or (lambda _: None)
    _render(folder / "videos", world or WorldSettings(), tell)
    report = extract(folder / "videos", out=folder / "feats.h5", device=device, progress=tell)
    if report.failed:
        raise CostlError(f"{folder / 'videos'}: {len(report.failed)} videos failed: {report.failed[0].reason}")
    features = CacheReader(report.cache)
    evaluations = {
        name: _trained(
            folder / "runs" / _slug(name), features, [*overrides, *changes], device, _speaking_of(name, tell)
        )
        for name, changes in MODELS.items()
    }
    results = _compare(features, evaluations)
    publish(folder / "results.json", (json.dumps(asdict(results), indent=2, default=str) + "\n").encode())
    return results


def _render(folder: Path, world: WorldSettings, tell: Tell) -> None:
    """Writes the sample world unless the same one is there. Its settings are noted last: they say that it is whole."""
    note, wanted = folder / "world.json", json.loads(json.dumps(asdict(world)))
    if note.is_file():
        if json.loads(note.read_text(encoding="utf-8")) != wanted:
            raise UsageError(
                f"{folder}: holds another sample world. Choose another folder with --out, or delete this one."
            )
        return
    write_sample(folder, settings=world, progress=lambda done, total: tell(Progress("render", done, total)))
    publish(note, json.dumps(wanted).encode())


def _trained(
    folder: Path, features: CacheReader, overrides: Sequence[str], device: str, tell: Tell
) -> dict[str, Evaluation]:
    """The run in `folder`, made or finished if it is not, evaluated on every split."""
    trained(folder, features, overrides=overrides, device=device, tell=tell)
    return {split: evaluate(folder, split=split, device=device, progress=tell) for split in SPLITS}


def _speaking_of(name: str, tell: Tell) -> Tell:
    return lambda progress: tell(replace(progress, stage=f"{name}: {progress.stage}"))


def _compare(features: CacheReader, evaluations: Mapping[str, Mapping[str, Evaluation]]) -> Results:
    settings, how = choose_zero_shot(features)
    references = {split: [chance(features, split), zero_shot(features, split, settings, how)] for split in SPLITS}
    rows = {
        reference.name: {split: references[split][i].brief for split in SPLITS}
        for i, reference in enumerate(references[SPLITS[0]])
    }
    for name, found in evaluations.items():
        rows[name] = {split: evaluation.metrics["brief"] for split, evaluation in found.items()}
    return Results(
        rows=rows,
        how={reference.name: reference.how for reference in references[SPLITS[0]]},
        pictures=tuple(found.folder / "predictions.png" for found in evaluations["CoSTL"].values()),
        notes=tuple(note for found in evaluations["CoSTL"].values() for note in found.notes),
    )


def _cell(brief: Mapping[str, float], key: str) -> str:
    # A very small world may have no clip that anyone rated "very good".
    return f"{brief[key]:>9.1f}" if key in brief else f"{'-':>9}"


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
