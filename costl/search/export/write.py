"""Writes search results: as one text, or into a folder with a file for each video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from costl.ask.formats import choose_format
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.formats.files import publish, refuse_overwrite
from costl.search.export.formats import FORMATS, NUMBERED, ONE_VIDEO, format_hits, is_ours
from costl.search.hits import SearchResult

if TYPE_CHECKING:
    from costl.pipeline.decode.frame_rate import FrameNumbers

_SUFFIXES = {"chapters": ".txt"}


def choose_hit_format(output_format: str | None, out: Path | None) -> str:
    """The one of FORMATS that `out` and `output_format` name, as `costl.ask.formats.choose_format` does it.

    The suffix of an existing folder names none.
    """
    return choose_format(output_format, None if out and out.is_dir() else out, formats=FORMATS)


def is_folder(out: Path | None, output_format: str) -> bool:
    """Whether `out` is a folder for a file of each video: in subtitles, chapters and EDL, if it exists or has no suffix."""
    return out is not None and output_format in (*ONE_VIDEO, "edl") and (out.is_dir() or not out.suffix)


def refuse_output(out: Path | None, output_format: str, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raises UsageError if `write_hits` must not write to `out`, as `files.refuse_overwrite` does. Call it before a search.

    `inputs` are files that the command reads.
    """
    if out is not None and not is_folder(out, output_format):
        refuse_overwrite(out, is_ours=is_ours, inputs=inputs, overwrite=overwrite)
    elif out is not None and out.is_file():
        raise UsageError(f"{out}: a file, expected a folder for a file of each video. Name another folder.")


def write_hits(
    results: Sequence[SearchResult],
    *,
    output_format: str,
    out: Path | None,
    print_text: Callable[[str], None],
    overwrite: bool = False,
    show_below: bool = False,
    grey: Callable[[str], str] = str,
) -> tuple[list[Path], list[str]]:
    """Writes the results to the file `out`, or into the folder `out` (`is_folder`), or passes their text to `print_text`.

    Returns the files that it wrote, and an error message for each video whose frames have no numbers: an EDL or OTIO timeline
    goes without its hits. `show_below` and `grey` are those of `SearchResult.table`. Raises UsageError as `format_hits` and
    `refuse_output` do, before it writes anything; VideoError if no video with a hit has numbers; CostlError if a file cannot
    be written.
    """
    refuse_output(out, output_format, overwrite=overwrite)
    videos = {hit.name: hit.video for result in results for hit in result.hits}
    frame_numbers: dict[str, FrameNumbers] = {}
    failures: list[str] = []
    if output_format in NUMBERED:
        frame_numbers, failures = _read_all(videos)
        results = [_in_videos(result, frame_numbers) for result in results]

    def as_text(part: Sequence[SearchResult]) -> str:
        return format_hits(part, output_format, frame_numbers=frame_numbers, show_below=show_below, grey=grey)

    if out is None:
        print_text(as_text(results))
        return [], failures
    texts = {path: as_text(part) for path, part in _parts(results, out, output_format).items()}
    for path in texts:
        refuse_overwrite(path, is_ours=is_ours, inputs=videos.values(), overwrite=overwrite)
    for path, text in texts.items():
        publish(path, text.encode())
    return list(texts), failures


def _read_all(videos: Mapping[str, Path]) -> tuple[dict[str, FrameNumbers], list[str]]:
    """The frame numbers of the videos that have them, and an error message for each other video.

    Raises VideoError if no video has them.
    """
    from costl.pipeline.decode.frame_rate import read_frame_numbers  # loads PyAV

    frame_numbers: dict[str, FrameNumbers] = {}
    errors: list[VideoError] = []
    for name, video in videos.items():
        try:
            frame_numbers[name] = read_frame_numbers(video)
        except VideoError as error:
            errors.append(error)
    if errors and not frame_numbers:
        raise errors[0]
    return frame_numbers, list(map(str, errors))


def _in_videos(result: SearchResult, names: Collection[str]) -> SearchResult:
    """The result with only the hits in these videos."""
    return replace(result, hits=tuple(hit for hit in result.hits if hit.name in names))


def _parts(results: Sequence[SearchResult], out: Path, output_format: str) -> dict[Path, Sequence[SearchResult]]:
    """What goes into the file `out`, or into each file of the folder `out`: a file is named as its video, with another suffix.

    The suffix of a video stays in the name where two videos differ in nothing else.
    """
    if not is_folder(out, output_format):
        return {out: results}
    suffix = _SUFFIXES.get(output_format, f".{output_format}")
    stems = {hit.name: hit.name.removesuffix(hit.video.suffix) for result in results for hit in result.hits}
    uses = Counter(text.casefold() for name, stem in stems.items() for text in {name, stem})
    parts: dict[Path, Sequence[SearchResult]] = {}
    for name, stem in stems.items():
        chosen = stem if uses[stem.casefold()] == 1 else name
        parts[out.joinpath(*_safe_parts(chosen + suffix))] = [_in_videos(result, [name]) for result in results]
    return parts


def _safe_parts(name: str) -> list[str]:
    """The parts of a path that does not lead out of its folder; the name may come from a stranger's cache."""
    return [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
