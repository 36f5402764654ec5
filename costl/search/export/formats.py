"""Search results as text: for people, for programs, and for editors and players."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from costl.ask.formats import SUBTITLE_BEGINNINGS, begins, csv_text, json_text, subtitles
from costl.pipeline.errors import UsageError
from costl.search.export import chapters, edl, otio
from costl.search.hits import Hit, SearchResult

if TYPE_CHECKING:
    from costl.pipeline.decode.frame_rate import FrameNumbers

FORMATS = ("table", "json", "jsonl", "csv", "srt", "vtt", "edl", "otio", "ffmetadata", "chapters")
ONE_VIDEO = ("srt", "vtt", "ffmetadata", "chapters")  # formats whose times are those of one video
NUMBERED = ("edl", "otio")  # formats that count frames
_CSV_HEADER = ["query", "rank", "name", "start_s", "end_s", "score", "video"]
# How the text of each format begins. A list of chapters is like those that people write, so that it never counts as ours.
_BEGINNINGS = (
    r"[^\n]* · [\d,]+ videos?( · [^\n]*)?\n",
    r'\[(\]|\n  \{\n    "query": [^\n]*\n    "videos": \d+,\n    "answered_by": )',
    r'\{"query": [^\n]*"videos": \d+, "answered_by": "',
    ",".join(_CSV_HEADER) + r"\n",
    *SUBTITLE_BEGINNINGS,
    edl.BEGINNING,
    otio.BEGINNING.replace("{", r"\{"),
    chapters.BEGINNING,
)


def is_ours(content: bytes) -> bool:
    """Whether a file begins as `format_hits` writes it."""
    return begins(content, _BEGINNINGS)


def format_hits(
    results: Sequence[SearchResult],
    output_format: str,
    *,
    frame_numbers: Mapping[str, FrameNumbers] | None = None,
    show_below: bool = False,
    grey: Callable[[str], str] = str,
) -> str:
    """The results as one text in one of FORMATS, with a line break at the end.

    The formats NUMBERED need `frame_numbers` of each video with a hit, by its name.
    `show_below` and `grey` are for tables (`SearchResult.table`). Raises UsageError for an unknown format, for hits in several
    videos in a format ONE_VIDEO, and as `edl.edl_text` does.
    """
    if output_format not in FORMATS:
        raise UsageError(f"output_format is {output_format!r}, expected one of {', '.join(FORMATS)}.")
    hits = [hit for result in results for hit in result.hits]
    refuse_several_videos(hits, output_format)
    if output_format == "table":
        return "\n\n".join(result.table(show_below=show_below, grey=grey) for result in results) + "\n"
    if output_format in ("json", "jsonl"):
        return json_text([result.to_row() for result in results], output_format)
    if output_format == "csv":
        return csv_text(_CSV_HEADER, map(_csv_row, hits, _ranks(results)))
    if output_format in ("srt", "vtt"):
        return subtitles([(hit.start_s, hit.end_s, hit.score, hit.query) for hit in hits], output_format)
    if output_format in NUMBERED:
        numbered = [(hit, (frame_numbers or {})[hit.name]) for hit in hits]
        return edl.edl_text(numbered) if output_format == "edl" else otio.otio_text(numbered)
    return chapters.ffmetadata(hits) if output_format == "ffmetadata" else chapters.chapter_list(hits)


def refuse_several_videos(hits: Sequence[Hit], output_format: str) -> None:
    """Raises UsageError for hits in several videos in a format that is about one."""
    videos = len({hit.name for hit in hits})
    if output_format in ONE_VIDEO and videos > 1:
        raise UsageError(
            f"{output_format} has the times of one video, but the hits are in {videos}. "
            "Name a folder with --out, so that each video gets a file of its own."
        )


def _ranks(results: Sequence[SearchResult]) -> list[int]:
    return [rank for result in results for rank in range(1, len(result.hits) + 1)]


def _csv_row(hit: Hit, rank: int) -> list[object]:
    # Microseconds: with fewer digits the start of a frame becomes the end of the one before.
    times = [f"{hit.start_s:.6f}", f"{hit.end_s:.6f}"]
    return [hit.query, rank, hit.name, *times, f"{hit.score:.4f}", hit.video]
