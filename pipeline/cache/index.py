"""The index of a cache: what its features are, one row per video, the annotations, and which words belong to it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.pack_table import GROUP, Table, read_table
from costl.pipeline.encode.types import Joint
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.fingerprint import canonical
from costl.pipeline.formats.strict_json import read_json
from costl.pipeline.grid import Grid
from costl.pipeline.options import Form, form_in

FORMAT = 1
MOST_CLIPS = 1 << 24  # of one video: 48 hours, the longest that is extracted, at 97 clips a second


@dataclass(frozen=True)
class VideoRow:
    """What became of one video. `status` is ok, or says in a word why there are no features; `reason` in a sentence.

    `name` is what annotations call the video, `id` the same made safe to be a file name. Raises CacheError for an id
    that is no plain file name, and for an `ok` row without its numbers.
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

    def __post_init__(self) -> None:
        for name, kind in _ROW_TYPES.items():
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise CacheError(f"cache row {self.id!r}: {name} is {getattr(self, name)!r}, expected {kind}.")
        if not self.id or self.id.startswith(".") or any(mark in self.id for mark in "/\\\0:") or len(self.id) > 250:
            raise CacheError(f"cache row {self.id!r}: not a safe video id. The index is foreign or damaged.")
        if self.part != (f"{self.id}.h5" if self.ok else ""):
            raise CacheError(f"cache row {self.id!r}: names the part {self.part!r}. The index is foreign or damaged.")
        if self.ok and not (self.clips >= 1 and math.isfinite(self.duration_s) and self.duration_s > 0):
            raise CacheError(f"cache row {self.id!r}: {self.clips} clips in {self.duration_s} s. The index is damaged.")
        if self.clips > MOST_CLIPS:  # much is computed for every clip before its features are looked at
            raise CacheError(f"cache row {self.id!r}: {self.clips} clips, longer than any video. The index is damaged.")

    def data(self) -> dict[str, Any]:
        """What a person or a program asks of a row: everything but where the features are stored."""
        names = ("name", "status", "reason", "clips", "duration_s", "repaired", "decoder")
        return {name: getattr(self, name) for name in names}

    @property
    def ok(self) -> bool:
        """Whether this video has features."""
        return self.status == "ok"


_ROW_TYPES: dict[str, Any] = {"clips": int, "repaired": int, "duration_s": (int, float)} | dict.fromkeys(
    ("id", "status", "name", "reason", "part", "checksum", "content_hash", "decoder"), str
)


@dataclass(frozen=True)
class Contents:
    """All that an index says besides its rows and words: how the features were made and what belongs to them.

    `fingerprint` is what decides the features; `patch_grid` is (0, 0) where frames have no patches; `annotations` the
    JSONL text of each split; `settings` what the data folder asks of training, kept as it is; `videos` where the videos
    were, as a path from the cache's folder, so that both can move together (empty where nobody knows); `source` by which
    `model` and `weights` (`told_from` the folder) the CLIP can be loaded again; `form` how the tokens are stored; `share` which
    part of a folder this is and where its annotations stood (`shards.Share.cut`), empty for the whole.
    """

    fingerprint: Mapping[str, Any]
    fps: float
    patch_grid: tuple[int, int]
    joint: Joint
    annotations: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    videos: str = ""
    source: Mapping[str, str] = field(default_factory=dict)
    form: Form = field(default_factory=Form)
    share: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.fps, (int, float)) and math.isfinite(self.fps) and self.fps > 0):
            raise CacheError(f"cache: fps is {self.fps!r}, expected a number above zero.")
        sides = self.patch_grid
        some = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
        if not some and tuple(sides) != (0, 0):
            raise CacheError(f"cache: patch grid is {sides!r}, expected rows and columns, or (0, 0) for no patches.")
        if any("\0" in text for text in (self.videos, *self.source.values())):
            raise CacheError("cache: a place that is no path. The index is foreign or damaged.")
        if self.form.tokens == "cls" and tuple(sides) != (0, 0):
            raise CacheError(f"cache: patch grid is {sides!r}, expected (0, 0) where frame tokens alone are kept.")

    @property
    def token_shape(self) -> tuple[int, int]:
        """(1+p, c) of every frame."""
        return 1 + self.patch_grid[0] * self.patch_grid[1], len(self.joint.norm_weight)


def told_from(folder: Path, weights: str) -> str:
    """Weights as the cache in `folder` notes them: a path as seen from there, so that both can move, a tag as it is."""
    tag, equals, name = weights.rpartition("=")
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if not path.exists():
        return weights
    seen = path_from(folder, path)
    return f"{tag}{equals}{seen if Path(seen).is_absolute() else f'./{seen}'}"


def path_from(folder: Path, place: Path) -> str:
    """`place` as seen from `folder`, so that both can move together; in full where there is no way."""
    try:
        return Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()
    except ValueError:  # Windows: another drive
        return place.resolve().as_posix()


def seen_from(folder: Path, weights: str) -> str:
    """The way back: weights that a cache in `folder` noted, as a full path or a tag."""
    tag, equals, name = weights.rpartition("=")
    return f"{tag}{equals}{(folder / name).resolve()}" if name.startswith("./") else weights


def seen_from_another(contents: Contents, old: Path, new: Path) -> Contents:
    """The same contents for an index that moves from the folder `old` to `new` while videos and weights stay."""
    if old.resolve() == new.resolve():
        return contents
    source = dict(contents.source)
    tag, equals, name = source.get("weights", "").rpartition("=")
    if name.startswith("./"):
        seen = path_from(new, old / name)
        source["weights"] = f"{tag}{equals}{seen if Path(seen).is_absolute() else f'./{seen}'}"
    return replace(contents, videos=contents.videos and path_from(new, old / contents.videos), source=source)


@dataclass(frozen=True)
class Index:
    """A whole index: `contents`, one row per video, and the name of the file that holds the words.

    `table` says where all of it lies in a packed file; None where the parts lie beside the index.
    """

    contents: Contents
    rows: list[VideoRow]
    words: str
    table: Table | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}\.h5", self.words):
            raise CacheError(f"cache: words in {self.words[:80]!r}. The index is foreign or damaged.")

    @property
    def files(self) -> list[str]:
        """The names of all that belongs to it, from the folder of parts: a part a row, then the words."""
        return [*(row.part for row in self.rows if row.ok), f"words/{self.words}"]


def read_index(path: Path) -> Index:
    """The index at `path`. Raises CacheError when it is missing, foreign, damaged or of another format."""
    with hdf5.reading(path) as file:
        found = hdf5.get_attribute(file, "format", int)
        if found != FORMAT:
            raise CacheError(f"{path}: cache format {found}, this program reads format {FORMAT}. Extract again.")
        features = _json(file, "features", dict)
        contents = Contents(
            fingerprint=_json(file, "fingerprint", dict),
            fps=features["fps"],
            patch_grid=tuple(features["patch_grid"]),
            joint=_read_joint(file),
            annotations=_read_annotations(file),
            settings=_json(file, "settings", dict),
            videos=str(features.get("videos", "")),
            source={name: str(value) for name, value in features.get("source", {}).items()},
            form=_made(form_in, values=features),
            share=features.get("share", {}),
        )
        rows = [_checked_row(file, row, contents.fps) for row in _json(file, "rows", list)]
        index = Index(contents, rows, hdf5.get_text(file, "words"))
        return replace(index, table=read_table(file, index.files))


def is_packed(path: Path) -> bool:
    """Whether the file at `path` is a packed cache, for what is none at all, no."""
    try:
        with hdf5.reading(path) as file:
            return hdf5.has(file, GROUP)
    except CacheError:
        return False


def write_index(
    path: Path,
    index: Index,
    *,
    more: Callable[[Any], None] | None = None,
    then: Callable[[Path], None] | None = None,
) -> None:
    """Publishes a whole index under its name; `more` puts more into the file, `then` is as in `hdf5.writing`.

    Raises CacheError when it cannot be written.
    """
    contents = index.contents
    with hdf5.writing(path, then=then) as file:
        hdf5.put_attributes(file, {"format": FORMAT})
        hdf5.put_text(file, "fingerprint", canonical(contents.fingerprint))
        features = {"fps": contents.fps, "patch_grid": list(contents.patch_grid), "videos": contents.videos}
        features |= {"source": dict(contents.source), **asdict(contents.form)}
        features |= {"share": dict(contents.share)} if contents.share else {}
        hdf5.put_text(file, "features", canonical(features))
        hdf5.put_text(file, "settings", json.dumps(contents.settings, ensure_ascii=False))
        hdf5.put_text(file, "rows", json.dumps([vars(row) for row in index.rows], ensure_ascii=False))
        annotations = file.create_group("annotations")
        for split, text in sorted(contents.annotations.items()):
            hdf5.put_text(annotations, split, text)
        _write_joint(file.create_group("joint"), contents.joint)
        hdf5.put_text(file, "words", index.words)
        if more:
            more(file)


def _write_joint(group: Any, joint: Joint) -> None:
    group["norm_weight"], group["norm_bias"], group["projection"] = joint.norm_weight, joint.norm_bias, joint.projection
    scalars = {"norm_eps": joint.norm_eps, "logit_scale": joint.logit_scale, "normed": joint.normed}
    hdf5.put_text(group, "scalars", canonical(scalars))


def _read_joint(file: Any) -> Joint:
    scalars = _json(file, "joint/scalars", dict)
    return _made(
        Joint,
        norm_weight=hdf5.get_array(file, "joint/norm_weight", "<f4", ndim=1),
        norm_bias=hdf5.get_array(file, "joint/norm_bias", "<f4", ndim=1),
        norm_eps=float(scalars["norm_eps"]),
        projection=hdf5.get_array(file, "joint/projection", "<f4", ndim=2),
        logit_scale=float(scalars["logit_scale"]),
        normed=bool(scalars.get("normed", True)),
    )


def _read_annotations(file: Any) -> dict[str, str]:
    splits = hdf5.names_in(file, "annotations")
    return {split: hdf5.get_text(file, f"annotations/{split}") for split in splits}


def _checked_row(file: Any, values: dict[str, Any], fps: float) -> VideoRow:
    row = VideoRow(**values)
    if row.ok and _made(Grid, fps=fps, duration_s=float(row.duration_s)).clips != row.clips:
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


_Made = TypeVar("_Made")


def _made(kind: Callable[..., _Made], **values: Any) -> _Made:
    """One of our own values from what a file says: whatever it refuses about itself is the file's fault."""
    try:
        return kind(**values)
    except CostlError as error:
        raise CacheError(f"damaged cache: {error} Delete it and run costl extract again.") from error
