"""Builds the report of a run on a split: one HTML file with metrics, training curves, every query and attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costl.data.queries import data_notes, read_queries
from costl.experiments.scored_runs import metrics_and_predictions
from costl.model.build import Model
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish, refuse_overwrite, refuse_suffix
from costl.pipeline.preview.thumbnails import Thumbnail
from costl.pipeline.progress import ProgressCallback
from costl.predict.attention_maps import clip_attention_maps
from costl.predict.loaded_run import load_model
from costl.report.kinds import Kinds, score_kinds
from costl.report.page import to_html
from costl.report.pictures import Clip, clips_to_show, read_thumbnails
from costl.report.query import ClipPicture, Item, choose_detailed, worst_first
from costl.report.training import read_best_epoch, read_curves
from costl.training.run_folder import newest_run, open_cache, read_run

SELECTION_SPLITS = {"val": "validation", "test": "the test split, which selected the epoch"}


@dataclass(frozen=True)
class Report:
    """The written file, its size, its number of queries and pictures, and `notes` for the user.

    `detailed` queries have pictures.
    """

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
        counts = f"{self.queries} queries, {self.detailed} of them with {self.pictures} pictures, {size}."
        return [*self.notes, counts]


def report(
    run: Path | None = None,
    *,
    split: str = "test",
    out: Path | None = None,
    videos: Path | None = None,
    detailed: int = 40,
    cache: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Report:
    """Writes the report of a run (by default the newest in `runs/`) to `out` (default: `report-<split>.html` in the run).

    If the split was not evaluated with the run's weights, it is evaluated first. Every query has a timeline. `detailed`
    queries, from the worst to the best, also get pictures and attention maps. Pictures need the folder `videos`, by
    default the folder at extraction. Raises UsageError if the run, the split or the folder does not exist, or `out` is
    another file (unless `overwrite`), CacheError if the cache is not that of the run or a file is damaged.
    """
    if detailed < 0:
        raise UsageError(f"detailed is {detailed}, expected 0 or more queries.")
    if out is not None:
        refuse_suffix(out, [".html", ".htm"])
        refuse_overwrite(out, is_ours=lambda content: b"<title>CoSTL: " in content, overwrite=overwrite)
    report_progress = progress or (lambda _: None)
    trained = read_run(run) if run else newest_run()
    features = open_cache(trained, cache)
    queries = read_queries(features, split, domain=trained.config.data.domain)
    metrics, predictions = metrics_and_predictions(
        trained, split, cache=features.path, device=device, progress=report_progress
    )
    # The prediction for a video without features has empty lists.
    answers = {answer.qid: answer for answer in predictions if answer.windows or answer.saliency}
    items = [Item(query, answers.get(query.qid)) for query in queries]
    kinds, items, notes = _scored(items, metrics, trained.config.data.benchmark)
    items = worst_first(items)
    clips = {i: clips_to_show(items[i].windows, items[i].query, features) for i in choose_detailed(items, detailed)}
    wanted = [(items[i].query.vid, clip) for i, labels in clips.items() for clip in labels]
    thumbnails, picture_notes = read_thumbnails(wanted, features, videos, report_progress)
    model = load_model(trained, features, device=pick_device(device)) if thumbnails else None
    for i, labels in clips.items():
        items[i] = _detailed(items[i], labels, thumbnails, features, model)
    selection = trained.config.train
    curves, curve_notes = read_curves(trained.folder / "metrics.jsonl", selection.select_on)
    notes += [*curve_notes, *([str(metrics["legacy"])] if "legacy" in metrics else [])]
    notes += [*picture_notes, *data_notes(split, queries, features), *map(str, metrics.get("notes", ()))]
    content = to_html(
        items=items,
        numbers={name: value for name, value in metrics["brief"].items() if value is not None},
        kinds=kinds,
        patch_grid=features.patch_grid,
        run=trained.folder.resolve().name,
        split=split,
        notes=notes,
        intervals=metrics.get("intervals", {}),
        curves=curves,
        selected=selection.select,
        selection_split=SELECTION_SPLITS[selection.select_on],
        best_epoch=read_best_epoch(trained.folder / "summary.json"),
    )
    path = out or trained.folder / f"report-{split}.html"
    publish(path, content)
    return Report(path, len(content), len(items), sum(bool(item.pictures) for item in items), len(thumbnails), tuple(notes))


def _scored(
    items: list[Item], metrics: Mapping[str, Any], benchmark: str
) -> tuple[Kinds | None, list[Item], list[str]]:
    """The scores by kind of query, the items with their precision, and a note if they cannot be scored."""
    rules: dict[str, Any] = {"benchmark": benchmark, "official": False} | dict(metrics.get("scored", {}))
    if not metrics["brief"]:
        return None, items, []
    try:
        return *score_kinds(items, benchmark=rules["benchmark"], official=rules["official"]), []
    except UsageError as error:  # annotations have changed since the evaluation
        return None, items, [f"No scores by kind of query: {error}"]


def _detailed(
    item: Item,
    labels: Mapping[int, str],
    thumbnails: Mapping[Clip, Thumbnail],
    features: CacheReader,
    model: Model | None,
) -> Item:
    """The item with pictures of the labelled clips and their attention maps, as far as there are thumbnails and maps."""
    video_id = item.query.vid
    ids = {clip: f"p{number}" for number, clip in enumerate(thumbnails)}
    centres_s = features.grid(video_id).centres_s()
    pictures = tuple(
        ClipPicture(ids[video_id, clip], thumbnails[video_id, clip], label, float(centres_s[clip]))
        for clip, label in labels.items()
        if (video_id, clip) in thumbnails
    )
    maps = None
    if pictures and model is not None and model.has_attention_maps:
        maps = clip_attention_maps(model, item.query, list(labels), features)
    return replace(item, pictures=pictures, maps=maps)
