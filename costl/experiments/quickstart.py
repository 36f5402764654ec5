"""The whole pipeline in one call: a sample world, its features, two trained models, two references, one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from costl.config import load_config
from costl.experiments.tables import BySplit, is_own_result, score_tables
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.formats.files import publish, refuse_overwrite
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.world.write_world import UNSEEN_OBJECTS, UNSEEN_RELATIONS, WorldSettings, write_sample

FOLDER = Path("costl-quickstart")
SPLITS = ("test", UNSEEN_OBJECTS, UNSEEN_RELATIONS)
# The full model is trained last, so that it is the newest run, which other commands use by default.
MODELS: Mapping[str, tuple[str, ...]] = {
    "CoSTL without spatial encoder": ("spatial.steps=0",),
    "CoSTL": (),
}


@dataclass(frozen=True)
class Results:
    """`rows`: headline numbers (percent) by method and split, in a list of one entry; `how`: a sentence about each reference;
    the pictures."""

    rows: Mapping[str, BySplit]
    how: Sequence[str]
    pictures: Sequence[Path]
    exit_code = 0

    def lines(self) -> list[str]:
        """A table for each split."""
        return score_tables(self.rows)

    def data(self) -> dict[str, Any]:
        """The headline numbers by method and split."""
        return {name: {split: numbers for split, (numbers,) in scores.items()} for name, scores in self.rows.items()}

    def messages(self) -> list[str]:
        """The sentences about the references, and the pictures."""
        return [*self.how, *(f"Picture: {path}" for path in self.pictures)]


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
    `overrides` are settings of training such as "train.epochs=5". Raises UsageError if the folder has other files or was
    made with other arguments.
    """
    refuse_overwrite(folder / "results.json", is_ours=is_own_result)
    load_config(overrides=overrides)  # refuses wrong settings before any work
    world = world or WorldSettings()
    splits = [split for split in SPLITS if split in world.videos]
    _render(folder / "videos", world, progress or (lambda _: None))
    # These load torch, which a refusal does not need.
    from costl.experiments.scored_runs import train_and_score, with_stage_prefix
    from costl.experiments.untrained_baselines import untrained_baselines

    report = extract(folder / "videos", out=folder / "feats.h5", device=device, progress=progress)
    if report.failed:
        raise CostlError(f"{folder / 'videos'}: {len(report.failed)} videos failed: {report.failed[0].reason}")
    rows: dict[str, BySplit] = {}
    for name, changes in MODELS.items():
        run = folder / "runs" / name.lower().replace(" ", "-")
        scores, _ = train_and_score(
            run,
            report.cache,
            splits,
            overrides=[*overrides, *changes],
            device=device,
            progress=with_stage_prefix(name, progress),
        )
        rows[name] = {split: [numbers] for split, numbers in scores.items()}
    features = CacheReader(report.cache)
    references, how = untrained_baselines(features, splits, load_config(features.settings, overrides=overrides))
    pictures = [run / f"eval-{split}" / "predictions.png" for split in splits]
    results = Results({**references, **rows}, how, pictures)
    publish(folder / "results.json", (json.dumps({"rows": results.data(), "how": how}, indent=2) + "\n").encode())
    return results


def _render(folder: Path, world: WorldSettings, report_progress: ProgressCallback) -> None:
    """Writes the sample world unless the folder has it. Its settings are written last: they mark it as complete."""
    settings_file = folder / "world.json"
    settings = json.loads(json.dumps(asdict(world)))
    if settings_file.is_file():
        stored = json.loads(settings_file.read_text(encoding="utf-8"))
        if {"fine": False} | stored != settings:  # version 0.1.0 had no fine worlds
            raise UsageError(f"{folder}: holds another sample world. Choose another folder with --out, or delete this one.")
        return
    write_sample(folder, settings=world, progress=lambda done, total: report_progress(Progress("render", done, total)))
    publish(settings_file, json.dumps(settings).encode())
