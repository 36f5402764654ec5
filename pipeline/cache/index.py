"""The index of a cache: how its features were made, one row per video, the annotations, and the name of its words file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.pack_table import PackTable, read_table
from costl.pipeline.encode.types import JointSpace, TokenProjection
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.fingerprint import canonical_json
from costl.pipeline.formats.strict_json import read_json
from costl.pipeline.grid import Grid
from costl.pipeline.options import TokenFormat

FORMATS = (1, 2)  # that are read; the last one is written
_PROJECTION_ARRAYS = {"norm_weight": 1, "norm_bias": 1, "projection": 2}  # and their axes
MAX_CLIPS = 1 << 24  # of one video: 48 hours, the longest video that is extracted, at 97 clips a second


@dataclass(frozen=True)
class VideoRow:
    """The outcome of one video: `status` is "ok", or one word for why it has no features, and `reason` a sentence.

    `name` is the video's name in annotations, and `id` the same name made safe as a file name. An "ok" row has the
    number of `clips`, `duration_s`, the file name of its `part`, the `checksum` of the part, the number of `repaired`
    frames and the `decoder`. `picture_start_s` is when its first picture appears; clips before that have the tokens of
    this picture. None is for format 1, in which all times count from the first picture. Raises CacheError for an id
    that is not a plain file name, and for an "ok" row without part, clips or duration.
    """

    id: str
    status: str
    name: str
    reason: str = ""
    part: str = ""
    clips: int = 0
    duration_s: float = 0.0
    checksum: str = ""
    content_hash: str = ""
    repaired: int = 0
    decoder: str = ""
    picture_start_s: float | None = None

    def __post_init__(self) -> None:
        for name, expected in _ROW_TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, expected) or isinstance(value, bool):
                raise CacheError(f"cache row {self.id!r}: {name} is {value!r}, expected {expected}.")
        if not re.fullmatch(r"(?!\.)[^/\\\0:]{1,250}", self.id, re.DOTALL):
            raise CacheError(f"cache row {self.id!r}: not a safe video id. The index is foreign or damaged.")
        if self.part != (f"{self.id}.h5" if self.ok else ""):
            raise CacheError(f"cache row {self.id!r}: names the part {self.part!r}. The index is foreign or damaged.")
        # Memory is used for every clip before the features are read.
        if self.ok and not (
            1 <= self.clips <= MAX_CLIPS and 0 <= (self.picture_start_s or 0.0) < self.duration_s < math.inf
        ):
            raise CacheError(f"cache row {self.id!r}: {self.clips} clips in {self.duration_s} s. The index is damaged.")

    def data(self) -> dict[str, Any]:
        """The fields for a person or a program: everything but where the features are stored."""
        names = ("name", "status", "reason", "clips", "duration_s", "repaired", "decoder")
        return {name: getattr(self, name) for name in names}

    @property
    def ok(self) -> bool:
        """Whether this video has features."""
        return self.status == "ok"


_ROW_TYPES: dict[str, Any] = {"clips": int, "repaired": int, "duration_s": (int, float)} | dict.fromkeys(
    ("id", "status", "name", "reason", "part", "checksum", "content_hash", "decoder"), str
) | {"picture_start_s": (int, float, NoneType)}


@dataclass(frozen=True)
class Contents:
    """Everything in an index besides its rows and words.

    `fingerprint`: every setting that decides a feature. `patch_grid`: rows and columns, (0, 0) where frames have no
    patches. `joint`: the space of frames and sentences. `token_width`: c. `projection`: where parts may lack joint vectors,
    because the cache was begun in format 1, what gives them. `annotations`: the JSONL text of each split. `settings`: the
    training settings of the data folder. `videos`: the folder of the videos as a path relative to the cache's folder, so
    that both can move together; empty if unknown.
    `source`: the `model` and the `weights` (see `relative_weights`) from which the CLIP can be loaded again.
    `token_format`: how the tokens are stored. `share`: which share of a data folder this is and the positions of its
    annotations in the whole files (`shards.Share.select_annotations`); empty for a whole folder. Raises CacheError for
    values that are impossible or disagree.
    """

    fingerprint: Mapping[str, Any]
    fps: float
    patch_grid: tuple[int, int]
    joint: JointSpace
    token_width: int
    projection: TokenProjection | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    videos: str = ""
    source: Mapping[str, str] = field(default_factory=dict)
    token_format: TokenFormat = field(default_factory=TokenFormat)
    share: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.fps, (int, float)) and math.isfinite(self.fps) and self.fps > 0):
            raise CacheError(f"cache: fps is {self.fps!r}, expected a number above zero.")
        sides = tuple(self.patch_grid)
        has_patches = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
        if sides != (0, 0) and not (has_patches and self.token_format.tokens == "all"):
            raise CacheError(f"cache: patch grid is {sides!r}, expected rows and columns, or (0, 0) without patches.")
        if any("\0" in text for text in (self.videos, *self.source.values())):
            raise CacheError("cache: a path with a null character. The index is foreign or damaged.")

    @property
    def token_shape(self) -> tuple[int, int]:
        """(1+p, c) of every frame."""
        rows, columns = self.patch_grid
        return 1 + rows * columns, self.token_width


def relative_weights(folder: Path, weights: str) -> str:
    """Weights as the cache in `folder` stores them: a path relative to it, so that both can move; a tag unchanged."""
    tag, equals, name = weights.rpartition("=")
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if not path.exists():
        return weights
    relative = relative_path(folder, path)
    # A leading "./" distinguishes a relative path from a tag.
    return f"{tag}{equals}{relative if Path(relative).is_absolute() else f'./{relative}'}"


def absolute_weights(folder: Path, weights: str) -> str:
    """The inverse: weights that the cache in `folder` stores, as a full path or a tag."""
    tag, equals, name = weights.rpartition("=")
    return f"{tag}{equals}{(folder / name).resolve()}" if name.startswith("./") else weights


def relocate_contents(contents: Contents, old: Path, new: Path) -> Contents:
    """The contents of an index that moves from the folder `old` to `new`, while videos and weights stay where they are."""
    if old.resolve() == new.resolve():
        return contents
    source = dict(contents.source)
    if "weights" in source:
        source["weights"] = relative_weights(new, absolute_weights(old, source["weights"]))
    videos = relative_path(new, old / contents.videos) if contents.videos else ""
    return replace(contents, videos=videos, source=source)


def relative_path(folder: Path, path: Path) -> str:
    """`path` relative to `folder`, so that both can move together; the full path where no relative one exists."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # Windows: another drive
        return path.resolve().as_posix()


@dataclass(frozen=True)
class Index:
    """A whole index: `contents`, one row per video, and the name of the file that holds the words.

    `pack_table` locates parts and words inside a packed file; None where they are files of their own. `format` is that of
    the file it was read from.
    """

    contents: Contents
    rows: list[VideoRow]
    words_file: str
    format: int = FORMATS[-1]
    pack_table: PackTable | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}\.h5", self.words_file):
            raise CacheError(f"cache: words in {self.words_file[:80]!r}. The index is foreign or damaged.")

    @property
    def files(self) -> list[str]:
        """The names of its files, relative to the folder of parts: the part of each row with features, then the words."""
        return [*(row.part for row in self.rows if row.ok), f"words/{self.words_file}"]


def read_index(path: Path) -> Index:
    """The index at `path`. Raises CacheError when it is missing, foreign, damaged or of another format."""
    with hdf5.open_file(path) as file:
        version = hdf5.get_attribute(file, "format", int)
        if version not in FORMATS:
            raise CacheError(f"{path}: cache format {version}, this program reads formats up to {FORMATS[-1]}. Update CoSTL.")
        features = _json(file, "features", dict)
        contents = Contents(
            fingerprint=_json(file, "fingerprint", dict),
            fps=features["fps"],
            patch_grid=tuple(features["patch_grid"]),
            **_read_joint_space(file),
            annotations=_read_annotations(file),
            settings=_json(file, "settings", dict),
            videos=str(features.get("videos", "")),
            source={name: str(value) for name, value in features.get("source", {}).items()},
            token_format=_construct(TokenFormat.from_fields, values=features),
            share=features.get("share", {}),
        )
        rows = [_checked_row(file, row, contents.fps) for row in _json(file, "rows", list)]
        index = Index(contents, rows, hdf5.get_text(file, "words"), version)
        return replace(index, pack_table=read_table(file, index.files))


def write_index(
    path: Path,
    index: Index,
    *,
    extend: Callable[[Any], None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Publishes an index. `extend` gets the open file to add data to it; `finish` is that of `hdf5.create_file`.

    Raises CacheError when it cannot be written.
    """
    contents = index.contents
    with hdf5.create_file(path, finish=finish) as file:
        hdf5.put_attributes(file, {"format": FORMATS[-1]})
        hdf5.put_text(file, "fingerprint", canonical_json(contents.fingerprint))
        features = {"fps": contents.fps, "patch_grid": list(contents.patch_grid), "videos": contents.videos}
        features |= {"source": dict(contents.source), **asdict(contents.token_format)}
        features |= {"share": dict(contents.share)} if contents.share else {}
        hdf5.put_text(file, "features", canonical_json(features))
        hdf5.put_text(file, "settings", json.dumps(contents.settings, ensure_ascii=False))
        hdf5.put_text(file, "rows", json.dumps([vars(row) for row in index.rows], ensure_ascii=False))
        annotations = file.create_group("annotations")
        for split, text in sorted(contents.annotations.items()):
            hdf5.put_text(annotations, split, text)
        _write_joint_space(file.create_group("joint"), contents)
        hdf5.put_text(file, "words", index.words_file)
        if extend:
            extend(file)


def _write_joint_space(group: Any, contents: Contents) -> None:
    scalars = asdict(contents.joint) | {"token_width": contents.token_width}
    projection = contents.projection
    if projection is not None:
        for name in _PROJECTION_ARRAYS:
            group[name] = getattr(projection, name)
        scalars |= {"norm_eps": projection.norm_eps, "normed": projection.normed}
    hdf5.put_text(group, "scalars", canonical_json(scalars))


def _read_joint_space(file: Any) -> dict[str, Any]:
    """`joint`, `token_width` and `projection` of the contents. Format 1 stores all of them as a projection and a scale."""
    scalars = _json(file, "joint/scalars", dict)
    projection = None
    if hdf5.has_name(hdf5.get_group(file, "joint"), "projection"):
        arrays = {name: hdf5.get_array(file, f"joint/{name}", "<f4", ndim=ndim) for name, ndim in _PROJECTION_ARRAYS.items()}
        norm = {"norm_eps": float(scalars["norm_eps"]), "normed": bool(scalars.get("normed", True))}
        projection = _construct(TokenProjection, **arrays, **norm)
        token_width, width = projection.projection.shape
        scalars = {"token_width": token_width, "width": width, "is_known": bool(projection.projection.any())} | scalars
    joint = _construct(
        JointSpace,
        width=int(scalars["width"]),
        logit_scale=float(scalars["logit_scale"]),
        logit_bias=float(scalars.get("logit_bias", 0.0)),
        is_known=bool(scalars["is_known"]),
    )
    return {"joint": joint, "token_width": int(scalars["token_width"]), "projection": projection}


def _read_annotations(file: Any) -> dict[str, str]:
    group = hdf5.get_group(file, "annotations")
    return {split: hdf5.get_text(group, split) for split in sorted(group)}


def _checked_row(file: Any, values: dict[str, Any], fps: float) -> VideoRow:
    row = VideoRow(**values)
    if row.ok and _construct(Grid, fps=fps, duration_s=float(row.duration_s)).clips != row.clips:
        raise CacheError(
            f"{file.filename}: video {row.id!r} has {row.clips} clips, which is not {row.duration_s} s at {fps} fps. "
            "Extract again."
        )
    return row


def _json(file: Any, name: str, kind: type) -> Any:
    value = read_json(hdf5.get_text(file, name))
    if not isinstance(value, kind):
        raise CacheError(f"{file.filename}: {name!r} is not a JSON {kind.__name__}. It was not made by costl extract.")
    return value


def _construct(kind: Callable[..., Any], **values: Any) -> Any:
    """An object from the values in a file. Values that it refuses mean that the file is damaged."""
    try:
        return kind(**values)
    except CostlError as error:
        raise CacheError(f"damaged cache: {error} Delete it and run costl extract again.") from error
