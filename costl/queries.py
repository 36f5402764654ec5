"""What can be asked, told before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UsageError

SUBTITLES = ("srt", "vtt")


def check_queries(queries: Sequence[str]) -> None:
    """Raises UsageError for a query that no model could make sense of, and for none at all."""
    if not queries:
        raise UsageError('no query. Say what to look for, such as "a dog catches a ball".')
    for query in queries:
        if not any(letter.isalnum() for letter in query):
            raise UsageError(f'query {query!r}: no letter in it. Say what to look for, such as "a dog catches a ball".')


def check_form(form: str, videos: Sequence[Path]) -> None:
    """Raises UsageError where a format cannot hold what was asked: subtitles belong to one video."""
    if form in SUBTITLES and len(videos) > 1:
        raise UsageError(
            f"--format {form} is for one video, {len(videos)} were given. Ask one after the other, or use jsonl."
        )
