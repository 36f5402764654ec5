"""What can be read linearly from frozen tokens about the things of a sample world: which, where, how large, moving how.

Every question names a thing by colour and shape, as a sentence does. A reader is linear in the tokens (see
`costl.experiments.linear_probe`), learns on videos of `train` and is scored on others. The same question is put to several sources, so that
the table says what the patches carry that the frame token lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from costl.data.splits import read_queries
from costl.experiments.linear_probe import Reader, learn
from costl.experiments.world_truth import FIELDS, OBJECTS, Asked, Scene, questions, read_scenes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.progress import Progress, Tell

SOURCES = {
    "frame token": "CLIP's token of the frame",
    "mean patch": "the mean of all patch tokens",
    "all patches": "all patch tokens side by side",
    "found patch": "the patch that a linear reader, the same at every place, takes for the thing, and its place",
    "patch there": "the patch where the thing is, as the truth tells, but only what it holds",
}
QUESTIONS = {
    "which": "is the thing in the picture? Accuracy; it is half the time",
    "bound": "the same where its colour and its shape are there in any case, on other things",
    "where": "in which of nine fields of the picture is it? Accuracy",
    "size": "how large is it? R2 of its diameter",
    "motion": "by how much does it move to the next clip, across and down? R2",
}
CLASSES = {"which": 2, "bound": 2, "where": FIELDS * FIELDS}
COUNT = 2000  # most questions to learn from, and most to be scored on
DETECTED = 1000  # frames that the finder of patches learns from
ELSEWHERE = 3  # other patches of each of them
MEMORY = 2**28  # bytes of tokens that the questions of one kind hold, as float16


@dataclass(frozen=True)
class Diagnosis:
    """`scores[split][question][source]`: accuracy in percent, or R2 for size and motion; `chance` stands beside the sources.
    `asked[split][question]` counts the questions."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    asked: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """A block for each split: a row for each question, a column for each source."""
        blocks: list[str] = []
        for split, rows in self.scores.items():
            columns = list(next(iter(rows.values())))
            lines = [f"{split:<12}{'asked':>6}" + "".join(f"{column:>{len(column) + 3}}" for column in columns)]
            for question, row in rows.items():
                cells = (_cell(question, row[column]).rjust(len(column) + 3) for column in columns)
                lines.append(f"{question:<12}{self.asked[split][question]:>6}{''.join(cells)}")
            blocks += [*([""] if blocks else []), *lines]
        return blocks

    def data(self) -> dict[str, Any]:
        """Every field."""
        return vars(self)

    def messages(self) -> list[str]:
        """What the questions and the sources are, and the notes."""
        return [*(f"{name}: {meaning}." for name, meaning in (QUESTIONS | SOURCES).items()), *self.notes]


def diagnose(
    cache: Path,
    *,
    splits: Sequence[str] = ("test",),
    objects: Path | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> Diagnosis:
    """Readers learn on videos of `train` and are scored on those of `splits`, for every question and source.

    `objects` is the sample world's objects.jsonl, by default beside the videos. One half of the training videos teaches
    the finder of patches, the other all readers; their ridge is chosen on a fifth of it. Raises UsageError where the truth
    is not to be found, where frames have no patches, and for a split that is not there.
    """
    tell, features = progress or (lambda _: None), CacheReader(cache)
    if features.patch_grid == (0, 0):
        raise UsageError(f"{cache}: its frames have no patches to look at: they were imported. Extract videos instead.")
    scenes = read_scenes(objects or _beside_the_videos(features), features)
    learned = _of_split(features, "train", scenes)
    if len(learned) < 2:
        raise UsageError(f"{cache}: one training video with a truth is too few: one half teaches, the other chooses.")
    return read_linearly(features, learned, {s: _of_split(features, s, scenes) for s in splits}, seed=seed, tell=tell)


class Tokens(Protocol):
    """What is asked of a cache here."""

    patch_grid: tuple[int, int]

    def tokens(self, video_id: str) -> np.ndarray: ...


def read_linearly(
    features: Tokens,
    learned: Sequence[Scene],
    scored: Mapping[str, Sequence[Scene]],
    *,
    seed: int,
    tell: Tell = lambda progress: None,
) -> Diagnosis:
    """The same for scenes at hand; a question that cannot be asked about them is left out, with a note."""
    for_finder, for_readers, rng = learned[::2], learned[1::2], np.random.default_rng(seed)
    count = min(COUNT, MEMORY // (2 * features.tokens(for_readers[0].vid)[0].nbytes))
    tell(Progress("diagnose", 0, len(QUESTIONS), "the finder of patches"))
    finder = _finder(questions("where", for_finder, count=min(count, DETECTED), rng=rng), features, rng)
    scores: dict[str, dict[str, dict[str, float]]] = {split: {} for split in scored}
    asked: dict[str, dict[str, int]] = {split: {} for split in scored}
    notes = []
    for number, question in enumerate(QUESTIONS):
        tell(Progress("diagnose", number, len(QUESTIONS), question))
        found = [questions(question, scenes, count=count, rng=rng) for scenes in (for_readers, *scored.values())]
        if not all(found):
            notes.append(f"{question}: cannot be asked about so few videos, left out.")
            continue
        lesson, *others = (_Lesson.of(some, features, finder) for some in found)
        exams = dict(zip(scored, others, strict=True))
        for split, row in _rows(question, lesson, exams).items():
            scores[split][question], asked[split][question] = row, len(exams[split].asked)
    tell(Progress("diagnose", len(QUESTIONS), len(QUESTIONS)))
    return Diagnosis(scores, asked, tuple(notes))


@dataclass(frozen=True)
class _Lesson:
    """Questions with the tokens of their clips, float16 [n clip 1+p c], and the patches (of p) that were `found` and that
    are `there`, [n clip]; `places` are those of all patches, [p w]."""

    asked: Sequence[Asked]
    tokens: np.ndarray
    found: np.ndarray
    there: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, asked: Sequence[Asked], features: Tokens, finder: Reader) -> _Lesson:
        """Videos are read one after another, each once."""
        order = sorted(asked, key=lambda one: one.vid)
        tokens = np.stack([_normed(features.tokens(one.vid)[list(one.clips)]).astype(np.float16) for one in order])
        clips = tokens.shape[1]
        found = [
            [_liking(finder, tokens[i, clip, 1:].astype(np.float32), one).argmax() for clip in range(clips)]
            for i, one in enumerate(order)
        ]
        there = [[_patch_at(place, features.patch_grid) for place in one.places] for one in order]
        return cls(order, tokens, np.array(found), np.array(there), _place_waves(features.patch_grid, tokens.shape[-1]))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [one.kind for one in self.asked]

    def answers(self, question: str) -> np.ndarray:
        """What a reader learns, [n k]: one of k columns is one, or what is to be told, in shares of the side."""
        plain = np.array([one.answer for one in self.asked])
        return np.eye(CLASSES[question])[plain[:, 0].astype(int)] if question in CLASSES else plain

    def read_from(self, source: str) -> np.ndarray:
        """The tokens of a source, [n f]; those of two clips one after the other."""
        patches = self.tokens[:, :, 1:]
        if source == "frame token":
            chosen = self.tokens[:, :, 0]
        elif source == "mean patch":
            chosen = patches.mean(2, dtype=np.float32)
        elif source == "all patches":
            chosen = patches
        else:
            which = self.found if source == "found patch" else self.there
            chosen = np.take_along_axis(patches, which[:, :, None, None], 2)
        if source == "found patch":
            chosen = np.concatenate([chosen[:, :, 0], self.places[self.found]], -1)
        return chosen.reshape(len(self.asked), -1).astype(np.float32)

    def held_out(self) -> np.ndarray:
        """The questions about every fifth video, bool [n]."""
        vids = sorted({one.vid for one in self.asked})
        chosen = set(vids[::5]) if len(vids) > 1 else set()
        return np.array([one.vid in chosen for one in self.asked])


def _rows(question: str, lesson: _Lesson, exams: Mapping[str, _Lesson]) -> dict[str, dict[str, float]]:
    """-> for each split the score of each source, and what the best constant answer would score."""
    answers = lesson.answers(question)
    rows: dict[str, dict[str, float]] = {split: {} for split in exams}
    for source in SOURCES:
        reader = learn(lesson.read_from(source), lesson.kinds, answers, held_out=lesson.held_out())
        for split, exam in exams.items():
            said = reader.read(exam.read_from(source), exam.kinds)
            rows[split][source] = _score(question, said, exam.answers(question))
    for split, exam in exams.items():
        truth = exam.answers(question)
        rows[split]["chance"] = _score(question, np.broadcast_to(answers.mean(0), truth.shape), truth)
    return rows


def _score(question: str, said: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy in percent, or R2 (1 - the share of the variance that is left)."""
    if question in CLASSES:
        return 100 * float((said.argmax(1) == truth.argmax(1)).mean())
    spread = float(np.square(truth - truth.mean(0)).sum())
    return 1 - float(np.square(truth - said).sum()) / spread if spread else 0.0


def _finder(asked: Sequence[Asked], features: Tokens, rng: np.random.Generator) -> Reader:
    """Tells the patch where a thing is from other patches of the same frame, wherever they are."""
    tokens, kinds, answers = [], [], []
    for one in asked:
        patches = _normed(features.tokens(one.vid)[one.clips[0], 1:])
        here = _patch_at(one.places[0], features.patch_grid)
        others = rng.permutation([p for p in range(len(patches)) if p != here])[:ELSEWHERE]
        tokens.append(patches[[here, *others]])
        kinds += [one.kind] * (1 + len(others))
        answers += [1.0] + [0.0] * len(others)
    return learn(np.concatenate(tokens), kinds, np.array(answers)[:, None])


def _liking(finder: Reader, patches: np.ndarray, one: Asked) -> np.ndarray:
    """How much each patch [p c] looks like the thing that is asked about."""
    return finder.read(patches, [one.kind] * len(patches))[:, 0]


def _normed(tokens: np.ndarray) -> np.ndarray:
    """Each token with mean zero and variance one over its channels, as CLIP's own last norm begins; float32."""
    tokens = tokens.astype(np.float32)
    tokens = tokens - tokens.mean(-1, keepdims=True)
    return tokens / np.sqrt(np.square(tokens).mean(-1, keepdims=True) + 1e-5)


def _place_waves(grid: tuple[int, int], width: int) -> np.ndarray:
    """Where each patch is, [p w]: its centre and the first waves across the picture, together as loud as a token."""
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    at = np.stack([x.ravel() - 0.5, y.ravel() - 0.5], -1)
    waves = [np.sqrt(12) * at, *(f(np.pi * turns * at) for turns in (1, 2, 3) for f in (np.sin, np.cos))]
    placed = np.concatenate(waves, -1)
    return placed * np.sqrt(width / placed.shape[1])


def _patch_at(place: tuple[float, float], grid: tuple[int, int]) -> int:
    row, column = (min(int(share * count), count - 1) for share, count in zip(place[::-1], grid, strict=True))
    return row * grid[1] + column


def _of_split(features: CacheReader, split: str, scenes: Mapping[str, Scene]) -> list[Scene]:
    vids = sorted({query.vid for query in read_queries(features, split)} & scenes.keys())
    if not vids:
        raise UsageError(f"{features.path}: no video of {split!r} has a row in {OBJECTS}. Is it of another world?")
    return [scenes[vid] for vid in vids]


def _beside_the_videos(features: CacheReader) -> Path:
    if features.videos is None:
        raise UsageError(
            f"{features.path}: does not say where its videos are. Name the {OBJECTS} of the sample world with --objects."
        )
    return features.videos / OBJECTS


def _cell(question: str, value: float) -> str:
    return f"{value:.1f}" if question in CLASSES else f"{value:.2f}"
