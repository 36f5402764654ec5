"""A run and a split -> one HTML file: numbers, curves, every query, and where the model looked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costl.data.annotations import Prediction, Query, parse_predictions
from costl.data.splits import data_notes, read_queries
from costl.evaluate import evaluate
from costl.model.build import Model
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, Tell
from costl.predict.attention_maps import has_maps, looks_at
from costl.predict.loaded_run import load_model
from costl.report.item import Item, Shot, by_badness, in_detail
from costl.report.page import Page, to_html
from costl.report.shots import Album, clips_to_show
from costl.training.precision import pick_device
from costl.training.run_folder import Run, newest_run, open_cache, read_run

DETAILED = 40


@dataclass(frozen=True)
class Report:
    """The file that was written, how large it is, what it holds, and what to know about it."""

    path: Path
    size_bytes: int
    queries: int
    detailed: int
    pictures: int
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The file."""
        return [str(self.path)]

    def data(self) -> dict[str, Any]:
        """Every field."""
        return vars(self) | {"path": str(self.path)}

    def messages(self) -> list[str]:
        """The notes, then how much the file holds."""
        size = f"{self.size_bytes / 1e6:.1f} MB" if self.size_bytes >= 1e5 else f"{self.size_bytes / 1e3:.0f} kB"
        counts = f"{self.detailed} of {self.queries} queries in full detail, {self.pictures} pictures, {size}."
        return [*self.notes, counts]


def report(
    run: Path | None = None,
    *,
    split: str = "test",
    out: Path | None = None,
    videos: Path | None = None,
    detailed: int = DETAILED,
    cache: Path | None = None,
    device: str = "auto",
    progress: Tell | None = None,
) -> Report:
    """Shows how a run (by default the newest in `runs/`) answers a split, as the one file `out` (default:
    `report-<split>.html` in the run). A split that was not evaluated with the run's weights is evaluated first.

    `detailed` queries, from the worst to the best, come with timelines and pictures; these need the `videos`, by default
    where they were at extraction. Raises UsageError for a missing run, split or folder of videos, CacheError where the
    cache is not that of the run or a file is damaged.
    """
    if detailed < 0:
        raise UsageError(f"detailed is {detailed}, expected 0 or more queries.")
    tell = progress or (lambda _: None)
    chosen = read_run(run) if run else newest_run()
    features = open_cache(chosen, cache)
    queries = read_queries(features, split)
    metrics, predictions = _evaluated(chosen, split, cache=features.path, device=device, progress=tell)
    rows, notes = _training_rows(chosen.folder / "metrics.jsonl")
    album = Album(features, videos)
    items = _with_shots(_items(queries, predictions, detailed), album, chosen, device, tell)
    notes += [str(metrics["legacy"])] if "legacy" in metrics else []
    notes += [*album.notes, *data_notes(split, queries, features), *map(str, metrics.get("notes", ()))]
    page = Page(
        run=chosen.folder.resolve().name,
        split=split,
        numbers={name: value for name, value in metrics["brief"].items() if value is not None},
        intervals=metrics.get("intervals", {}),
        notes=notes,
        rows=rows,
        select=chosen.config.train.select,
        kept=_kept(chosen.folder, rows),
        items=items,
        pictures=album.pictures,
        patch_grid=features.patch_grid,
    )
    path, content = out or chosen.folder / f"report-{split}.html", to_html(page)
    publish(path, content)
    shown = sum(item.detailed for item in items)
    return Report(path, len(content), len(items), shown, len(album.pictures), tuple(notes))


def _evaluated(
    run: Run, split: str, *, cache: Path, device: str, progress: Tell
) -> tuple[Mapping[str, Any], list[Prediction]]:
    """Metrics and predictions of a split: those on disk, unless there are none, they are older than the weights or damaged."""
    folder, weights = run.folder / f"eval-{split}", run.folder / "best.safetensors"
    try:
        if weights.stat().st_mtime_ns <= (folder / "predictions.jsonl").stat().st_mtime_ns:
            return _read_evaluation(folder)
    except (OSError, ValueError, UsageError):
        pass  # whatever is missing or damaged there is made again
    evaluate(run.folder, split=split, cache=cache, device=device, progress=progress)
    return _read_evaluation(folder)


def _read_evaluation(folder: Path) -> tuple[Mapping[str, Any], list[Prediction]]:
    told = folder / "metrics.json"  # a split without labels has none
    metrics = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {"brief": {}}
    if not isinstance(metrics, dict) or not isinstance(metrics.get("brief"), dict):
        raise ValueError(f"{folder / 'metrics.json'}: no 'brief' numbers in it")
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return metrics, parse_predictions(text, str(folder / "predictions.jsonl"))


def _training_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The epochs that can be read, and a note about those that cannot."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], [f"{path}: cannot be read, so the curves of training are left out."]
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_checked_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged.append(number)
    rows.sort(key=lambda row: row["epoch"])
    if not damaged:
        return rows, []
    which = f"line{'s' if len(damaged) > 1 else ''} {', '.join(map(str, damaged[:5]))}"
    return rows, [f"{path.name}: {which} cannot be read; the curves of training are without {len(damaged)} epochs."]


def _checked_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's numbers; raises where one is not finite or no number."""
    kinds = ("losses", "val", "test")
    numbers = {kind: {name: _finite(value) for name, value in row.get(kind, {}).items()} for kind in kinds}
    rate = {"learning_rate": _finite(row["learning_rate"])} if "learning_rate" in row else {}
    return {"epoch": int(row["epoch"]), **rate, **{kind: found for kind, found in numbers.items() if found}}


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < float("inf"):
        raise ValueError(f"{value!r} is not finite")
    return number


def _kept(folder: Path, rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch whose weights are in use; of a run that is not finished nobody knows it but its last checkpoint."""
    try:
        kept = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["best_epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if any(row["epoch"] == kept for row in rows) else None


def _items(queries: Sequence[Query], predictions: Sequence[Prediction], detailed: int) -> list[Item]:
    # Empty lists stand where the video has no features.
    answers = {answer.qid: answer for answer in predictions if answer.windows or answer.saliency}
    items = by_badness([Item(query, answers.get(query.qid)) for query in queries])
    chosen = in_detail(items, detailed)
    return [replace(item, detailed=place in chosen) for place, item in enumerate(items)]


def _with_shots(items: Sequence[Item], album: Album, run: Run, device: str, tell: Tell) -> list[Item]:
    """Those in full detail with their pictures and maps, as far as the videos are at hand."""
    detailed = [item for item in items if item.detailed]
    if not album.there or not detailed:
        return list(items)
    model, shots = load_model(run, album.features, device=pick_device(device)), dict[int, tuple[Shot, ...]]()
    for done, item in enumerate(sorted(detailed, key=lambda item: item.query.vid), start=1):
        shots[id(item)] = _shots(item, album, model)
        tell(Progress("pictures", done, len(detailed), item.query.vid))
    return [replace(item, shots=shots.get(id(item), ())) for item in items]


def _shots(item: Item, album: Album, model: Model) -> tuple[Shot, ...]:
    features, query = album.features, item.query
    labels = clips_to_show(item.windows, query, features)
    names = album.take(query.vid, list(labels))
    if not names:
        return ()
    centres_s = features.grid(query.vid).centres_s()
    with_maps = has_maps(model)
    return tuple(
        Shot(
            names[clip], label, float(centres_s[clip]), looks_at(model, query, [clip], features) if with_maps else None
        )
        for clip, label in labels.items()
    )
