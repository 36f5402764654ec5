"""The files of corpus metrics: what is true in every video, and the rankings of a search, both with a sentence on each line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from costl.data.annotations import Query, number_in, parse_jsonl, text_in
from costl.metrics.corpus import CorpusTruth, RankedMoment, TrueMoment, score_corpus
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.annotations import plain_name, read_rows, refuse_bad_rows
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.strict_json import abbreviated, json_lines, read_text

TRUTH = "corpus.jsonl"  # in the folder of the videos of a sample world
DEFAULT_SPLIT = "test"
TRUTH_EXAMPLE = '{"split": "test", "sentence": "a dog", "videos": {"holiday": [[12, 20]]}}'
RANKING_EXAMPLE = '{"sentence": "a dog", "moments": [["holiday", 12.5, 20, 0.83]]}'

Row = TypeVar("Row")
Item = TypeVar("Item", list[Any], dict[str, Any])


@dataclass(frozen=True)
class _TruthRow:
    split: str
    sentence: str
    truth: CorpusTruth


@dataclass(frozen=True)
class _Ranking:
    sentence: str
    moments: tuple[RankedMoment, ...]


def score_corpus_files(predictions: Path, truth: Path, *, split: str | None = None) -> dict[str, Any]:
    """The result of `score_corpus` for a file of rankings and a file of truth, as `read_truth` and `read_rankings` read them.

    Raises UsageError as these do.
    """
    rows = read_truth(truth, split)
    return score_corpus(read_rankings(predictions), rows)


def read_truth(path: Path, split: str | None = None) -> list[CorpusTruth]:
    """What is true where, from a corpus.jsonl or from annotations.

    The videos of each split of a corpus.jsonl are one corpus; `split` is by default test. Annotations, which
    `truth_of_queries` reads, and a file without splits are one corpus, whatever `split` is. Raises UsageError for a file that
    is missing or empty, for a bad row (with file and line) and for a split that is not in the file.
    """
    text = read_text(path)
    _, first_line = next(json_lines(text), (0, ""))
    if '"query"' in first_line:
        return truth_of_queries(parse_jsonl(text, str(path)))
    rows = _parse(text, path, _truth_row, unique=("split", "sentence"), example=TRUTH_EXAMPLE)
    splits = sorted({row.split for row in rows})
    chosen = "" if splits == [""] else split or DEFAULT_SPLIT
    if chosen not in splits:
        raise UsageError(f"{path}: no split {chosen!r}, only {', '.join(map(repr, splits))}. Choose one with --split.")
    return [row.truth for row in rows if row.split == chosen]


def truth_of_split(
    split: str, queries: Sequence[Query], *, videos: Path | None, truth: Path | None = None
) -> list[CorpusTruth]:
    """What is true in the videos of a split with these queries.

    It is read from `truth`, by default from corpus.jsonl in the folder of the videos, and without one from the queries.
    Raises UsageError as `read_truth` does, and for a video that is not of the split.
    """
    path = truth or (videos or Path()) / TRUTH
    if truth is None and not path.is_file():
        return truth_of_queries(queries)
    rows = read_truth(path, split)
    outside = {moment.video for row in rows for moment in row.moments} - {plain_name(query.vid) for query in queries}
    if outside:
        raise UsageError(f"{path}: not in split {split!r}: {first_few(sorted(outside))}. Is it of another set of videos?")
    return rows


def truth_of_queries(queries: Iterable[Query]) -> list[CorpusTruth]:
    """What annotated queries know of a corpus, as TVR and DiDeMo use it: each sentence is true in its annotated videos alone.

    Queries without windows are left out.
    """
    moments: dict[str, list[TrueMoment]] = {}
    for query in queries:
        windows = [TrueMoment(plain_name(query.vid), start_s, end_s) for start_s, end_s in query.windows]
        if windows:
            moments.setdefault(query.query, []).extend(windows)
    return [CorpusTruth(sentence, tuple(of_sentence)) for sentence, of_sentence in moments.items()]


def read_rankings(path: Path) -> dict[str, tuple[RankedMoment, ...]]:
    """The ranked moments of each sentence, from what `write_rankings` or `costl search --format jsonl` writes.

    Raises UsageError for a file that is missing or empty and for a bad row.
    """
    rows = _parse(read_text(path), path, _ranking, unique=("sentence",), example=RANKING_EXAMPLE)
    return {row.sentence: row.moments for row in rows}


def write_rankings(path: Path, rankings: Mapping[str, Sequence[RankedMoment]]) -> None:
    """Writes what `read_rankings` reads. Raises CostlError when the disk refuses."""
    lines = [json.dumps({"sentence": s, "moments": list(map(list, moments))}) + "\n" for s, moments in rankings.items()]
    publish(path, "".join(lines).encode())


def is_own_rankings(content: bytes) -> bool:
    """Whether the beginning and the end of a file are those of `write_rankings`."""
    return content.startswith(b'{"sentence": ') and b'"moments": [' in content


def _parse(
    text: str, path: Path, make: Callable[[Mapping[str, Any]], Row], *, unique: Sequence[str], example: str
) -> list[Row]:
    rows, problems = read_rows(text, str(path), make, unique=unique)
    refuse_bad_rows(problems)
    if not rows:
        raise UsageError(f"{path}: no row in it, expected one JSON object a line, such as {example}.")
    return rows


def _truth_row(row: Mapping[str, Any]) -> _TruthRow:
    sentence = text_in(row, "sentence")
    videos = row.get("videos")
    if not isinstance(videos, dict):
        raise UsageError(f"'videos' is {abbreviated(videos)}, expected an object, such as {TRUTH_EXAMPLE}")
    moments = [_true_moment(video, window) for video, windows in videos.items() for window in _list(windows, "videos", list)]
    absent = text_in(row, "absent") if "absent" in row else ""
    split = text_in(row, "split") if "split" in row else ""
    return _TruthRow(split, sentence, CorpusTruth(sentence, tuple(moments), absent))


def _true_moment(video: str, window: Sequence[Any]) -> TrueMoment:
    if len(window) not in (2, 3):
        raise UsageError(f"'videos' holds {abbreviated(window)}, expected [start, end] or [start, end, relevance]")
    start_s, end_s, relevance = (number_in({"videos": value}, "videos") for value in (*window, 1.0)[:3])
    if not 0 <= start_s < end_s or relevance <= 0:
        raise UsageError(f"'videos' holds {abbreviated(window)}, expected 0 <= start < end and a relevance above 0")
    return TrueMoment(plain_name(video), start_s, end_s, relevance)


def _ranking(row: Mapping[str, Any]) -> _Ranking:
    if "hits" in row:
        return _search_result(row)
    sentence = text_in(row, "sentence")
    if "moments" not in row:
        raise UsageError(f"sentence {sentence!r} has no 'moments', expected a list, which may be empty")
    return _Ranking(sentence, tuple(_ranked_moment(moment) for moment in _list(row["moments"], "moments", list)))


def _search_result(row: Mapping[str, Any]) -> _Ranking:
    """The hits of a search, and those below its threshold, which metrics count as well."""
    hits = [*_list(row["hits"], "hits", dict), *_list(row.get("below", []), "below", dict)]
    moments = [[text_in(hit, "name"), *(number_in(hit, name) for name in ("start_s", "end_s", "score"))] for hit in hits]
    return _Ranking(text_in(row, "query"), tuple(map(_ranked_moment, moments)))


def _ranked_moment(moment: Sequence[Any]) -> RankedMoment:
    if len(moment) != 4 or not isinstance(moment[0], str):
        raise UsageError(f"'moments' holds {abbreviated(moment)}, expected [video, start, end, score]")
    start_s, end_s, score = (number_in({"moments": value}, "moments") for value in moment[1:])
    if not start_s <= end_s:
        raise UsageError(f"'moments' holds {abbreviated(moment)}, expected start <= end")
    return plain_name(moment[0]), start_s, end_s, score


def _list(value: Any, name: str, of: type[Item]) -> list[Item]:
    if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
        kind = "objects" if of is dict else "lists"
        raise UsageError(f"{name!r} holds {abbreviated(value)}, expected a list of {kind}")
    return value
