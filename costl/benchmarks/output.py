"""What `costl prepare` prints and writes: the report, and the files of the folder --out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from costl.benchmarks.common import SPLITS
from costl.data.annotations import Query
from costl.pipeline.errors import CostlError, UsageError, first_few
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.table import table

MADE_BY = "costl prepare"
REPORT = "report.json"
_SETTINGS, _MISSING = "costl.yaml", "missing.txt"
_WRITTEN = {REPORT, _SETTINGS, _MISSING, *(f"{split}.jsonl" for split in SPLITS)}
_PRINTED = {
    "missing": "missing videos",
    "rated": "rated clips",
    "window_s": "seconds of a window (min / median / max)",
    "rows_per_video": "rows of a video (min / median / max)",
}


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`: `sources` with their sha256, the counts of each split, notes for the user, the folder `out`
    that it wrote, the folder of `videos`, and the annotated videos without a file, sorted.

    `benchmark` is empty for a user's own labels. The counts of a split are rows, videos, missing videos, windows, rated
    clips, and `quirks`: by name how often something was corrected or remarkable. Own labels also have lists of
    [minimum, median, maximum].
    """

    benchmark: str
    title: str
    sources: Mapping[str, str]
    options: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]
    out: Path
    videos: Path | None
    missing: Sequence[str]
    exit_code = 0

    def data(self) -> dict[str, Any]:
        """The content of report.json. It has the number of missing videos; missing.txt has their names."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("out", "videos", "missing")}
        return {"made_by": MADE_BY, **fields}

    def messages(self) -> list[str]:
        """What was read, the notes, where the missing videos are listed, and the next command."""
        missing = [f"Missing videos: {self.out / _MISSING}"] if self.missing else []
        videos = shlex.quote(str(self.videos)) if self.videos else "DIR"
        cache = shlex.quote(f"{self.benchmark or Path(self.title).stem}.h5")
        extract = f"costl extract --videos {videos} --annotations {shlex.quote(str(self.out))} --out {cache}"
        allow = " --allow-missing-videos" if self.missing else ""
        return [f"Read {', '.join(self.sources)}.", *self.notes, *missing, f"Next: {extract}{allow}"]

    def lines(self) -> list[str]:
        """The report for a terminal: a row for each thing counted, a column for each split."""
        counts = [{**split, **split["quirks"]} for split in self.splits.values()]
        names = [name for name in dict.fromkeys(chain(*counts)) if name != "quirks"]
        rows = [[_PRINTED.get(name, name), *(_cell(count.get(name, 0)) for count in counts)] for name in names]
        return table([self.title, *self.splits], (row for row in rows if any(row[1:])))


def refuse_other_content(out: Path, benchmark: str, title: str) -> None:
    """Raises UsageError where `out` has anything but an earlier output for the same benchmark or the same own labels."""
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if not names:
        return
    try:
        earlier = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    own_output = isinstance(earlier, dict) and earlier.get("made_by") == MADE_BY
    others = sorted(names - _WRITTEN if own_output else names)
    if others:
        raise UsageError(f"{out}: holds files that {MADE_BY} did not write ({first_few(others)}). Choose another --out.")
    if earlier.get("benchmark") != benchmark or (not benchmark and earlier.get("title") != title):
        raise UsageError(f"{out}: holds {earlier.get('title')}. Choose another --out for {title}.")


def shared_videos(splits: Mapping[str, Sequence[Query]]) -> list[str]:
    """A sentence about each two splits that share videos, which it names."""
    videos = {split: {query.vid for query in queries} for split, queries in splits.items()}
    shared = {(one, other): videos[one] & videos[other] for one, other in combinations(splits, 2)}
    return [
        f"{one} and {other} share {len(vids)} videos: {first_few(sorted(vids))}."
        for (one, other), vids in shared.items()
        if vids
    ]


def write_output(
    out: Path, report: PrepareReport, splits: Mapping[str, Sequence[Mapping[str, Any]]], *, settings: str = ""
) -> None:
    """Writes report.json, costl.yaml with `settings`, missing.txt and the rows of each split, those that have content.

    Removes the files of an earlier output first. Raises CostlError when the disk refuses.
    """
    # The report comes first, so that the next call recognises the files of a killed one. train.jsonl comes last, so that
    # nothing is trained on an incomplete output.
    contents = {
        REPORT: json.dumps(report.data(), indent=2, ensure_ascii=False) + "\n",
        _SETTINGS: settings,
        _MISSING: "".join(f"{vid}\n" for vid in report.missing),
    }
    for split in reversed(list(splits)):
        contents[f"{split}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in splits[split])
    try:
        for name in _WRITTEN - {REPORT}:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise CostlError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from error
    for name, content in contents.items():
        if content:
            publish(out / name, content.encode())


def _cell(value: Any) -> Any:
    """A number, or [minimum, median, maximum] as text."""
    return " / ".join(f"{number:.4g}" for number in value) if isinstance(value, list) else value
