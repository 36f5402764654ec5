"""Cuts the hits of a search out of their videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.output import cut_moments
from costl.pipeline.progress import ProgressCallback
from costl.search.hits import Hit, SearchResult


def cut_hits(
    results: Sequence[SearchResult], folder: Path, *, overwrite: bool = False, progress: ProgressCallback = lambda _: None
) -> list[Path]:
    """Writes every hit as an MP4 file, named as `costl.ask.output.cut_moments` does. Returns the files.

    Raises UsageError for a file that is not an earlier output, unless `overwrite`; VideoError for a video that cannot be read.
    """
    answers = [_answer(video, hits) for result in results for video, hits in _by_video(result).items()]
    return cut_moments(answers, folder, overwrite=overwrite, progress=progress)


def _by_video(result: SearchResult) -> dict[Path, list[Hit]]:
    by_video: dict[Path, list[Hit]] = {}
    for hit in result.hits:
        by_video.setdefault(hit.video, []).append(hit)
    return by_video


def _answer(video: Path, hits: Sequence[Hit]) -> Answer:
    moments = tuple(Moment(hit.start_s, hit.end_s, hit.score) for hit in hits)
    return Answer(hits[0].query, video, hits[0].duration_s, moments, Saliency(hits[0].duration_s, ()))
