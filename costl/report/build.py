"""Builds the report of a run on a split: one HTML file with metrics, training curves, every query and attention maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costl.data.annotations import Prediction, Query
from costl.data.queries import data_notes, read_queries
from costl.experiments.scored_runs import metrics_and_predictions
from costl.model.build import Model
from costl.pipeline.device import pick_device
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, ProgressCallback
from costl.predict.attention_maps import clip_attention_maps, has_attention_maps
from costl.predict.loaded_run import load_model
from costl.report.page import Page, to_html
from costl.report.pictures import ReportPictures, clips_to_show
from costl.report.query import ClipPicture, Item, choose_detailed, worst_first
from costl.training.run_folder import Run, newest_run, open_cache, read_run

DETAILED_QUERIES = 40


@dataclass(frozen=True)
class Report:
    """The written file, its size, how many queries and pictures it holds, and `notes` for the user."""

    path: Path
    size_bytes: int
    queries: int
    detailed: int
    pictures: int
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The path of the file."""
        return [str(self.path)]

    def data(self) -> dict[str, Any]:
        """Every field."""
        return vars(self) | {"path": str(self.path)}

    def messages(self) -> list[str]:
        """The notes, then the number of queries and pictures, and the size of the file."""
        size = f"{self.size_bytes / 1e6:.1f} MB" if self.size_bytes >= 1e5 else f"{self.size_bytes / 1e3:.0f} kB"
        counts = f"{self.detailed} of {self.queries} queries in full detail, {self.pictures} pictures, {size}."
        return [*self.notes, counts]


def report(
    run: Path | None = None,
    *,
    split: str = "test",
    out: Path | None = None,
    videos: Path | None = None,
    detailed: int = DETAILED_QUERIES,
    cache: Path | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> Report:
    """Writes the report of a run (by default the newest in `runs/`) to `out` (default: `report-<split>.html` in the run).

    If the split was not evaluated with the run's weights, it is evaluated first. `detailed` queries, from the worst to
    the best, get timelines and pictures. Pictures need the folder `videos`, by default the folder at extraction. Raises
    UsageError if the run, the split or the folder does not exist, CacheError if the cache is not that of the run or a
    file is damaged.
    """
    if detailed < 0:
        raise UsageError(f"detailed is {detailed}, expected 0 or more queries.")
    report_progress = progress or (lambda _: None)
    trained = read_run(run) if run else newest_run()
    features = open_cache(trained, cache)
    queries = read_queries(features, split)
    metrics, predictions = metrics_and_predictions(
        trained, split, cache=features.path, device=device, progress=report_progress
    )
    rows, notes = _training_rows(trained.folder / "metrics.jsonl")
    pictures = ReportPictures(features, videos)
    items = _with_pictures(_items(queries, predictions, detailed), pictures, trained, device, report_progress)
    notes += [str(metrics["legacy"])] if "legacy" in metrics else []
    notes += [*pictures.notes, *data_notes(split, queries, features), *map(str, metrics.get("notes", ()))]
    page = Page(
        run=trained.folder.resolve().name,
        split=split,
        numbers={name: value for name, value in metrics["brief"].items() if value is not None},
        intervals=metrics.get("intervals", {}),
        notes=notes,
        rows=rows,
        select=trained.config.train.select,
        best_epoch=_best_epoch(trained.folder, rows),
        items=items,
        pictures=pictures.thumbnails,
        patch_grid=features.patch_grid,
    )
    path = out or trained.folder / f"report-{split}.html"
    content = to_html(page)
    publish(path, content)
    return Report(
        path,
        size_bytes=len(content),
        queries=len(items),
        detailed=sum(item.detailed for item in items),
        pictures=len(pictures.thumbnails),
        notes=tuple(notes),
    )


def _training_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable rows of metrics.jsonl, and a note about the others."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], [f"{path}: cannot be read, so the report has no training curves."]
    rows = []
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_checked_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged.append(number)
    rows.sort(key=lambda row: row["epoch"])
    if not damaged:
        return rows, []
    which = f"line{'s' if len(damaged) > 1 else ''} {', '.join(map(str, damaged[:5]))}"
    return rows, [f"{path.name}: {which} cannot be read, so the training curves lack {len(damaged)} epochs."]


def _checked_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an epoch. Raises ValueError or TypeError for a value that is not a finite number."""
    checked: dict[str, Any] = {"epoch": int(row["epoch"])}
    if "learning_rate" in row:
        checked["learning_rate"] = _finite(row["learning_rate"])
    for kind in ("losses", "val", "test"):
        numbers = {name: _finite(value) for name, value in row.get(kind, {}).items()}
        if numbers:
            checked[kind] = numbers
    return checked


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < float("inf"):
        raise ValueError(f"{value!r} is not finite")
    return number


def _best_epoch(folder: Path, rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch of the run's weights; None for an unfinished run, which has no summary.json."""
    try:
        best = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["best_epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best if any(row["epoch"] == best for row in rows) else None


def _items(queries: Sequence[Query], predictions: Sequence[Prediction], detailed: int) -> list[Item]:
    # The prediction for a video without features has empty lists.
    answers = {answer.qid: answer for answer in predictions if answer.windows or answer.saliency}
    items = worst_first([Item(query, answers.get(query.qid)) for query in queries])
    detailed_indices = choose_detailed(items, detailed)
    return [replace(item, detailed=index in detailed_indices) for index, item in enumerate(items)]


def _with_pictures(
    items: Sequence[Item], pictures: ReportPictures, run: Run, device: str, report_progress: ProgressCallback
) -> list[Item]:
    """The items; the detailed ones get pictures and attention maps, if the videos are available."""
    detailed = [item for item in items if item.detailed]
    if not pictures.available or not detailed:
        return list(items)
    model = load_model(run, pictures.features, device=pick_device(device))
    by_item: dict[int, tuple[ClipPicture, ...]] = {}
    for done, item in enumerate(sorted(detailed, key=lambda item: item.query.vid), start=1):
        by_item[id(item)] = _clip_pictures(item, pictures, model)
        report_progress(Progress("pictures", done, len(detailed), item.query.vid))
    return [replace(item, pictures=by_item.get(id(item), ())) for item in items]


def _clip_pictures(item: Item, pictures: ReportPictures, model: Model) -> tuple[ClipPicture, ...]:
    features = pictures.features
    query = item.query
    labels = clips_to_show(item.windows, query, features)
    picture_ids = pictures.add(query.vid, list(labels))
    if not picture_ids:
        return ()
    centres_s = features.grid(query.vid).centres_s()
    with_maps = has_attention_maps(model)
    return tuple(
        ClipPicture(
            picture_id=picture_ids[clip],
            label=label,
            centre_s=float(centres_s[clip]),
            maps=clip_attention_maps(model, query, [clip], features) if with_maps else None,
        )
        for clip, label in labels.items()
    )
