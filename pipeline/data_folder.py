"""The settings and annotations of a data folder: `costl.yaml` and the annotation files next to the videos."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError, first_few, suggest
from costl.pipeline.formats.annotations import EXAMPLE, Query, read_rows, refuse_bad_rows
from costl.pipeline.formats.strict_json import as_jsonl, json_lines, read_json, read_text
from costl.pipeline.formats.strict_yaml import read_yaml
from costl.pipeline.options import MODEL, WEIGHTS, TokenFormat, check_choices

SETTINGS_FILE = "costl.yaml"
SPLITS = ("train", "val", "test")
TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
REMOVED = {"layers": "A cache stores the tokens of CLIP's last block only: remove this line."}
SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
_ANNOTATION_NAME = re.compile(r"(?<![a-z])(train|val|valid|dev|test|training|validation|testing|annotations?|labels?)(?![a-z])")


@dataclass(frozen=True)
class ExtractSettings:
    """The settings that decide the features.

    `model`: an open_clip model. `weights`: a tag, FILE, TAG=FILE or DIR. `fps`: clips per second. `decoder`, `sampling` and
    `resize`: how frames are made, see `options.FrameOptions`. `dtype` and `tokens`: how their tokens are stored, see
    `options.TokenFormat`. Raises UsageError for other values.
    """

    model: str = MODEL
    weights: str = WEIGHTS
    fps: float = 0.5
    decoder: str = "decord"
    sampling: str = "centre"
    resize: str = "device"
    dtype: str = "float16"
    tokens: str = "all"

    def __post_init__(self) -> None:
        for name in ("model", "weights"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected a name.")
        if not _is_positive(self.fps):
            raise UsageError(f"fps is {self.fps!r}, expected clips per second above zero, such as 0.5.")
        check_choices(
            decoder=self.decoder, sampling=self.sampling, resize=self.resize, dtype=self.dtype, tokens=self.tokens
        )
        if self.resize == "decoder" and self.decoder == "torchcodec:cuda":
            raise UsageError(
                "decoder is 'torchcodec:cuda', which cannot resize frames, and resize is 'decoder'. Choose another decoder, "
                "or resize: device."
            )

    @property
    def token_format(self) -> TokenFormat:
        """How the tokens are stored."""
        return TokenFormat(dtype=self.dtype, tokens=self.tokens)


@dataclass(frozen=True)
class FolderSettings:
    """The two sections of a `costl.yaml`: `extract`, and `train`, which stage one stores in the cache unchecked."""

    extract: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


def data_folder(videos: Path) -> Path:
    """The folder that holds annotations and settings: that of the videos, or its parent if the videos are in `videos/`."""
    folder = videos if videos.is_dir() else videos.parent
    if folder.resolve().name != "videos":
        return folder
    has_own_files = (folder / SETTINGS_FILE).is_file() or has_annotations(folder)
    return folder if has_own_files else folder.resolve().parent


def settings_folder(folder: Path, annotations: Any = None) -> Path:
    """The folder whose costl.yaml counts: that of `annotations` if it is a folder with one, otherwise the data folder.

    Only one file counts, so that the settings of one benchmark are never mixed with those of another.
    """
    has_settings = isinstance(annotations, Path) and (annotations / SETTINGS_FILE).is_file()
    return annotations if has_settings else folder


def read_settings(folder: Path) -> FolderSettings:
    """The `costl.yaml` of a folder, empty if there is none; a relative weights path is relative to that folder.

    Raises UsageError for a file that is not YAML, and for unknown keys with the nearest known one.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return FolderSettings()
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
    sections = _section(path, "the file", content)
    _refuse_unknown_keys(path, sections, FolderSettings)
    extract = _section(path, "extract", sections.get("extract"))
    _refuse_unknown_keys(path, extract, ExtractSettings)
    train = _section(path, "train", sections.get("train"))
    if isinstance(extract.get("weights"), str):
        extract["weights"] = _resolve_weights(folder, extract["weights"])
    return FolderSettings(extract, train)


def _section(path: Path, name: str, content: Any) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: {name} is {type(content).__name__}, expected `key: value` lines.")
    return dict(content)


def _refuse_unknown_keys(path: Path, section: Iterable[str], settings: type) -> None:
    names = [item.name for item in fields(settings)]
    unknown = [f"unknown key {key!r}. {REMOVED.get(key) or suggest(key, names)}" for key in section if key not in names]
    if unknown:
        raise UsageError(f"{path}: {' '.join(unknown)}")


def _resolve_weights(folder: Path, weights: str) -> str:
    tag, equals, name = weights.rpartition("=")
    try:
        path = folder / Path(name).expanduser()
        return f"{tag}{equals}{path}" if path.exists() else weights
    except (OSError, RuntimeError):  # too long for a path, or the home folder of an unknown user
        return weights


def without_spatial_encoder(train: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's settings for training with the spatial encoder off, for features without patches."""
    spatial = train.get("spatial")
    return {**train, "spatial": {**(spatial if isinstance(spatial, Mapping) else {}), "steps": 0}}


def read_annotations(path: Path) -> dict[str, str]:
    """The JSONL text of each split: {train,val,test}.jsonl and test_*.jsonl of a folder, or one file of any name.

    A file may also be one JSON list of rows, in a folder as train.json, val.json or test.json. Raises UsageError if there
    are no annotations, if a file is empty or has another program's name for a split that is missing, and as
    `check_annotations` does.
    """
    if not path.exists():
        raise UsageError(f"{path}: no annotations, no such file or folder.")
    files = [path] if path.is_file() else _split_files(path)
    unread = unread_files(path) if path.is_dir() else []
    if not files:
        others = f" Not read: {first_few(unread)} (costl prepare converts labels)." if unread else ""
        raise UsageError(
            f"{path}: no annotations. Expected train.jsonl, val.jsonl or test.jsonl there, "
            f"or the path of the annotations with --annotations.{others}"
        )
    for name in unread:
        split = _split_meant(name)
        if split and split not in {file.stem for file in files}:
            raise UsageError(f"{path / name}: not read. Call it {split}.jsonl, one JSON object a line, or move it away.")
    texts = {file.stem: read_text(file) for file in files}
    sources = {file.stem: f"{file}, row" if texts[file.stem].lstrip().startswith("[") else str(file) for file in files}
    texts = {split: as_jsonl(text) for split, text in texts.items()}
    check_annotations(texts, sources)
    for file in files:
        if not texts[file.stem].strip():
            raise UsageError(f"{file}: no row in it. Write one JSON object a line, or remove the file.")
    return texts


def has_annotations(folder: Path) -> bool:
    """Whether `read_annotations` finds files in this folder."""
    return bool(_split_files(folder))


def unread_files(folder: Path) -> list[str]:
    """The names of files in a folder that look like annotations and that `read_annotations` does not read."""
    read = {path.name for path in _split_files(folder)}
    files = (path for path in sorted(folder.iterdir()) if path.name not in read and not path.name.startswith("."))
    return [path.name for path in files if path.suffix.lower() in TEXT_SUFFIXES and _looks_like_annotations(path)]


def _looks_like_annotations(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    has_rows = b'"query"' in head and b'"pred_' not in head
    return has_rows or _ANNOTATION_NAME.search(path.stem.lower()) is not None


def _split_meant(name: str) -> str:
    """The split that a file such as validation.jsonl, Val.jsonl or val.csv is probably meant for, or an empty text."""
    stem = name.partition(".")[0].lower()
    split = SPLIT_NAMES.get(stem, stem)
    return split if split in SPLITS else ""


def _split_files(folder: Path) -> list[Path]:
    named = [[folder / f"{split}{suffix}" for suffix in (".jsonl", ".json")] for split in SPLITS]
    further_tests = [[path] for path in sorted(folder.glob("test_*.jsonl"))]
    found = ([path for path in paths if path.is_file()] for paths in [*named, *further_tests])
    return [paths[0] for paths in found if paths]


def check_annotations(texts: Mapping[str, str], sources: Mapping[str, str] | None = None) -> None:
    """Raises UsageError that lists the first bad rows of all splits, by the names of their files (`sources`) and lines."""
    problems: list[str] = []
    for split, text in texts.items():
        source = (sources or {}).get(split, f"{split}.jsonl")
        rows, bad = read_rows(text, source, Query.from_row)
        if bad and not rows and "is not JSON" in bad[0]:
            bad = [f"{source}: expected one JSON object a line, such as {EXAMPLE}. costl prepare converts other files.", bad[0]]
        problems += bad
    refuse_bad_rows(problems)


def _is_positive(value: Any) -> bool:
    # Not isfinite(), which fails on integers too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def missing_videos(texts: Mapping[str, str], videos: Iterable[str]) -> list[str]:
    """The videos of checked annotations that are not in `videos`, in the order of their first rows."""
    present = set(videos)
    annotated = dict.fromkeys(row["vid"] for row in rows_in(texts))
    return [name for name in annotated if name not in present]


def queries_in(texts: Mapping[str, str]) -> list[str]:
    """The distinct queries of checked annotations, in the order of their first rows."""
    return list(dict.fromkeys(row["query"] for row in rows_in(texts)))


def rows_in(texts: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """All rows of checked annotations, in order."""
    return [row for _, _, row in _rows(texts)]


def _rows(texts: Mapping[str, str]) -> Iterable[tuple[str, int, Any]]:
    """(split, line number, row) of each line that is not blank; for a line that is not JSON the row is the ValueError."""
    for split, text in texts.items():
        for number, line in json_lines(text):
            try:
                yield split, number, read_json(line)
            except ValueError as error:
                yield split, number, error
