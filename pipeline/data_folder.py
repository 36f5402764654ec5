"""What a data folder says about itself: `costl.yaml` and the annotation files beside the videos."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError, some
from costl.pipeline.formats.strict_json import read_json, shown
from costl.pipeline.formats.strict_yaml import read_yaml
from costl.pipeline.options import DECODERS, RESIZES, SAMPLINGS, Form

FILE = "costl.yaml"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ExtractSettings:
    """What decides the features: an open_clip model, its weights (tag, FILE, TAG=FILE or DIR), clips per second; by which
    decoder, from which frame of a clip and at which size frames are made (`how`); and the form their tokens are stored in:
    `dtype`, `layers` and `tokens` as in `forms.Form`.

    Raises UsageError for a value that cannot be meant.
    """

    model: str = "ViT-B-32"
    weights: str = "openai"
    fps: float = 0.5
    decoder: str = "decord"
    sampling: str = "centre"
    resize: str = "device"
    dtype: str = "float16"
    layers: int = 1
    tokens: str = "all"

    def __post_init__(self) -> None:
        for name in ("model", "weights"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected a name.")
        if not _above_zero(self.fps):
            raise UsageError(f"fps is {self.fps!r}, expected clips per second above zero, such as 0.5.")
        choices = {"decoder": (*DECODERS, "auto"), "sampling": SAMPLINGS, "resize": RESIZES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        _ = self.form  # which checks itself

    @property
    def form(self) -> Form:
        """How the tokens are stored."""
        return Form(dtype=self.dtype, layers=self.layers, tokens=self.tokens)


@dataclass(frozen=True)
class FolderSettings:
    """The two sections of a `costl.yaml`: `extract` for us, `train` as it is for whoever trains."""

    extract: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


def data_folder(videos: Path) -> Path:
    """The folder that holds annotations and settings: that of the videos, or its parent where they lie in `videos/`."""
    folder = videos if videos.is_dir() else videos.parent
    above = folder.resolve().parent
    says_nothing = not (folder / FILE).is_file() and not _split_files(folder)
    return above if folder.resolve().name == "videos" and says_nothing else folder


def settings_folder(folder: Path, annotations: Any = None) -> Path:
    """Whose costl.yaml counts: that of the folder of `annotations` where it has one, otherwise that of the data folder.

    One file alone counts, so that what a benchmark's says about clips and training is never mixed with another's.
    """
    said = isinstance(annotations, Path) and (annotations / FILE).is_file()
    return annotations if said else folder


def read_settings(folder: Path) -> FolderSettings:
    """The `costl.yaml` of a folder, empty where there is none; a relative weights path is taken from that folder.

    Raises UsageError for what is not YAML, and for unknown keys with the nearest known one.
    """
    path = folder / FILE
    if not path.is_file():
        return FolderSettings()
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
    sections = _section(path, "the file", found, known=[item.name for item in fields(FolderSettings)])
    extract = _section(path, "extract", sections.get("extract"), known=[item.name for item in fields(ExtractSettings)])
    train = _section(path, "train", sections.get("train"), known=None)
    if isinstance(extract.get("weights"), str):
        extract["weights"] = _weights_beside(folder, extract["weights"])
    return FolderSettings(extract, train)


def without_patches(train: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder asks of training, with the spatial encoder off: there is nothing for it to look at."""
    spatial = train.get("spatial")
    return {**train, "spatial": {**(spatial if isinstance(spatial, Mapping) else {}), "steps": 0}}


def read_annotations(
    place: Path, videos: Iterable[str] | None = None, *, allow_missing: bool = False
) -> dict[str, str]:
    """The JSONL text of every split: {train,val,test}.jsonl and test_*.jsonl of a folder, or one file of any name.

    `videos` are the names that rows may speak of (None: any). Raises UsageError where there is none, naming file and
    line of rows that are no annotation and, unless `allow_missing`, the videos that are missing.
    """
    files = [place] if place.is_file() else _split_files(place)
    if not files:
        raise UsageError(
            f"{place}: no annotations. Expected train.jsonl, val.jsonl or test.jsonl there, "
            "or --annotations with their place."
        )
    texts: dict[str, str] = {}
    for path in files:
        try:
            texts[path.stem] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error}).") from error
    check_annotations(texts, videos, allow_missing=allow_missing)
    return texts


def check_annotations(
    texts: Mapping[str, str], videos: Iterable[str] | None = None, *, allow_missing: bool = False
) -> None:
    """Raises UsageError for rows without qid, query, vid or duration, and for videos that are not in `videos`."""
    bad = []
    for split, number, row in _rows(texts):
        problem = f"not JSON ({row})" if isinstance(row, ValueError) else _problem(row)
        if problem:
            bad.append(f"{split}.jsonl:{number}: {problem}")
    if bad:
        raise UsageError(f"Annotations that cannot be used: {some(bad, between='; ', last='; and ')}.")
    known = set(videos or ())
    names = [] if allow_missing or videos is None else missing_videos(texts, known)
    if names:
        raise UsageError(
            f"The annotations speak of {len(names)} videos that are not here: {some(names, last=', and ')}. "
            f"Here are {len(known)}: {some(sorted(known), last=', and ')}. Add the missing ones, take out their rows, or pass "
            "--allow-missing-videos to go on without them."
        )


def missing_videos(texts: Mapping[str, str], videos: Iterable[str]) -> list[str]:
    """The videos that checked annotations speak of and that are not in `videos`, in their order."""
    known = set(videos)
    return [name for name in dict.fromkeys(row["vid"] for _, _, row in _rows(texts)) if name not in known]


def queries_in(texts: Mapping[str, str]) -> list[str]:
    """Every distinct query of checked annotations, in their order."""
    return list(dict.fromkeys(row["query"] for row in rows_in(texts)))


def rows_in(texts: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Every row of checked annotations, in their order."""
    return [row for _, _, row in _rows(texts)]


def _split_files(folder: Path) -> list[Path]:
    named = [folder / f"{split}.jsonl" for split in SPLITS]
    return [path for path in [*named, *sorted(folder.glob("test_*.jsonl"))] if path.is_file()]


def _section(path: Path, name: str, found: Any, *, known: list[str] | None) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"{path}: {name} is {type(found).__name__}, expected `key: value` lines.")
    unknown = [] if known is None else [key for key in found if key not in known]
    if unknown and known is not None:
        raise UsageError(f"{path}: {'; '.join(_unknown(key, known) for key in unknown)}.")
    return dict(found)


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key!r}, " + (f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}")


def _weights_beside(folder: Path, weights: str) -> str:
    tag, equals, name = weights.rpartition("=")
    try:
        beside = folder / Path(name).expanduser()
        return f"{tag}{equals}{beside}" if beside.exists() else weights
    except (OSError, RuntimeError):  # too long for a path, or the home of nobody
        return weights


def _rows(texts: Mapping[str, str]) -> Iterable[tuple[str, int, Any]]:
    """(split, line number, row) of every line that is not blank; a row that is not JSON is the error about it."""
    for split, text in texts.items():
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                yield split, number, read_json(line)
            except ValueError as error:
                yield split, number, error


def _problem(row: Any) -> str:
    if not isinstance(row, dict):
        return "not a JSON object"
    missing = [key for key in ("qid", "query", "vid", "duration") if row.get(key) is None]
    if missing:
        return f"no {', '.join(missing)}"
    for key in ("query", "vid"):
        if not isinstance(row[key], str) or not row[key].strip():
            return f"{key} is {shown(row[key])}, expected text"
    if not _above_zero(row["duration"]):
        return f"duration is {shown(row['duration'])}, expected seconds above zero"
    return ""


def _above_zero(value: Any) -> bool:
    # Not isfinite(), which stumbles over whole numbers too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
