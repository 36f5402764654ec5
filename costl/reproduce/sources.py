"""Where the features of a reproduction come from: the videos of a folder, or files that others have published."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from costl.pipeline.cache.inspect import WrittenCache
from costl.pipeline.data_folder import ExtractSettings
from costl.pipeline.errors import UsageError
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import find_videos

LINKS = "annotated-videos"  # the folder of links to the annotated videos, where others are in their folder


class Source(Protocol):
    """Makes caches from the annotations that `costl prepare` wrote."""

    @property
    def videos(self) -> Path | None:
        """The folder of the videos; None for published features."""

    @property
    def smaller(self) -> str:
        """A sentence about how the features take less of the disk, or an empty text."""

    def available(self, vids: Collection[str]) -> list[str]:
        """Those of the annotated videos that can have features, sorted."""

    def make_cache(
        self, annotations: Path, out: Path, vids: Collection[str], progress: ProgressCallback | None
    ) -> WrittenCache:
        """Writes or completes the cache `out` with the videos `vids` and all sentences of `annotations`."""


@dataclass(frozen=True)
class VideoSource:
    """Extraction from the folder `videos`. `chosen` are fields of `ExtractSettings`; None leaves one as it is."""

    videos: Path
    allow_missing: bool = False
    device: str = "auto"
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ExtractSettings(**{name: value for name, value in self.chosen.items() if value is not None})  # refuses wrong values

    @property
    def smaller(self) -> str:
        """int8 has half the size."""
        return "" if self.chosen.get("dtype") == "int8" else " --dtype int8 halves the features."

    def available(self, vids: Collection[str]) -> list[str]:
        """The annotated videos with a file."""
        names = {video.path.stem for video in find_videos(self.videos, allow_none=True)}
        return sorted(names & set(vids))

    def make_cache(
        self, annotations: Path, out: Path, vids: Collection[str], progress: ProgressCallback | None
    ) -> WrittenCache:
        """Extracts `vids` and no other video of the folder, by links to them next to `out`."""
        from costl.pipeline.extract import extract

        return extract(
            _only(vids, self.videos, out.parent / LINKS),
            out=out,
            annotations=annotations,
            allow_missing_videos=self.allow_missing,
            device=self.device,
            progress=progress,
            **self.chosen,
        )


@dataclass(frozen=True)
class FeatureSource:
    """Import of published features: the folder of each stream, the folder of the sentences, see `import_features`."""

    streams: Mapping[str, Path]
    text: Path
    joint: str | None = None
    allow_missing: bool = False
    videos = None
    smaller = ""

    def available(self, vids: Collection[str]) -> list[str]:
        """The annotated videos with a file in every stream."""
        from costl.pipeline.published.arrays import find_file

        return sorted(vid for vid in vids if all(find_file(folder, vid) for folder in self.streams.values()))

    def make_cache(
        self, annotations: Path, out: Path, vids: Collection[str], progress: ProgressCallback | None
    ) -> WrittenCache:
        """Imports the videos that `annotations` name."""
        from costl.pipeline.published.import_features import import_features

        return import_features(
            annotations,
            features=self.streams,
            text=self.text,
            out=out,
            joint=self.joint,
            allow_missing=self.allow_missing,
            progress=progress,
        )


def choose_source(
    *,
    videos: Path | None,
    features: Mapping[str, Path],
    text: Path | None,
    joint: str | None,
    allow_missing: bool,
    device: str,
    chosen: Mapping[str, Any],
) -> Source:
    """The one source that the arguments name. Raises UsageError for none, for both, and for options of the other one."""
    if (videos is None) == (not features):
        found = "are both given" if features else "are both missing"
        raise UsageError(f"--videos and --features {found}: pass the folder of the videos, or published features.")
    if videos is not None:
        if text is not None or joint is not None:
            raise UsageError("--text and --joint belong to --features: leave them out with --videos.")
        return VideoSource(videos, allow_missing, device, chosen)
    given = [f"--{name}" for name, value in chosen.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: for --videos only, --features have an encoder of their own. Leave it out.")
    if text is None:
        raise UsageError("--text is missing: the folder with the published features of the sentences.")
    return FeatureSource(features, text, joint, allow_missing)


def _only(vids: Collection[str], folder: Path, links: Path) -> Path:
    """A folder with the videos `vids` of `folder` and no other: `folder` itself, or `links`, which gets links to them.

    Raises UsageError where no link can be made.
    """
    paths = {video.path.stem: video.path for video in find_videos(folder)}
    if paths.keys() <= set(vids):
        return folder
    wanted = {paths[vid].name: paths[vid].resolve() for vid in vids if vid in paths}
    links.mkdir(parents=True, exist_ok=True)
    for link in links.iterdir():
        if link.is_symlink() and link.name not in wanted:
            link.unlink()
    for name, path in wanted.items():
        if not os.path.lexists(links / name):
            _link(links / name, path)
    return links


def _link(link: Path, path: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # Windows lets only some users make these
        try:
            link.hardlink_to(path)
        except OSError as error:
            raise UsageError(
                f"{path.parent}: has videos that are not annotated, and links to the others cannot be made in {link.parent} "
                f"({error.strerror}). Move the annotated videos to a folder of their own."
            ) from error
