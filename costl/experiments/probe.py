"""Linear probes of frozen tokens: what do they contain about the objects of a sample world, and where they are?

Every question names an object by colour and shape, as a sentence does. A probe is linear in the tokens (see
`costl.experiments.linear_probe`), is fitted to videos of `train` and scored on others. Each question has a probe for every
source of tokens: the difference between sources shows what patches contain that the frame token lacks.

Axes: n questions, t clips of a question, p patches, c channels of a token, f features of a source, k values of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from costl.data.queries import read_queries
from costl.experiments.linear_probe import LinearProbe, fit_probe
from costl.experiments.world_truth import FIELDS, OBJECTS, Question, Scene, draw_questions, read_scenes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.progress import Progress, ProgressCallback

SOURCES = {
    "frame token": "CLIP's token of the frame",
    "mean patch": "the mean of all patch tokens",
    "all patches": "all patch tokens, concatenated",
    "found patch": "the patch where a linear detector, the same at every position, scores highest, and its position",
    "patch there": "the patch at the true position of the object, without its position",
}
TOPICS = {
    "which": "is the object in the picture? Accuracy; the answer is yes half the time",
    "bound": "the same, with the colour and the shape on other objects of the picture in any case",
    "where": "in which of nine fields of the picture is it? Accuracy",
    "size": "how large is it? R2 of its diameter",
    "motion": "how far does it move to the next clip, right and down? R2",
}
CLASSES = {"which": 2, "bound": 2, "where": FIELDS * FIELDS}
MAX_QUESTIONS = 2000  # to fit, and to score
DETECTOR_FRAMES = 1000  # to fit the detector
NEGATIVE_PATCHES = 3  # in each of them
MEMORY = 2**28  # bytes of the float16 tokens for the questions on one topic


@dataclass(frozen=True)
class Diagnosis:
    """`scores[split][topic][source]`: accuracy in percent, or R2 for size and motion; `chance` is listed with the sources.
    `counts[split][topic]`: the number of questions."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """A block for each split: a row for each topic, a column for each source."""
        blocks: list[str] = []
        for split, rows in self.scores.items():
            columns = list(next(iter(rows.values())))
            lines = [f"{split:<12}{'asked':>6}" + "".join(f"{column:>{len(column) + 3}}" for column in columns)]
            for topic, row in rows.items():
                cells = (_cell(topic, row[column]).rjust(len(column) + 3) for column in columns)
                lines.append(f"{topic:<12}{self.counts[split][topic]:>6}{''.join(cells)}")
            blocks += [*([""] if blocks else []), *lines]
        return blocks

    def data(self) -> dict[str, Any]:
        """All of it as JSON-compatible values."""
        return {"scores": self.scores, "asked": self.counts, "notes": self.notes}

    def messages(self) -> list[str]:
        """The meaning of the topics and sources, and the notes."""
        return [*(f"{name}: {meaning}." for name, meaning in (TOPICS | SOURCES).items()), *self.notes]


def diagnose(
    cache: Path,
    *,
    splits: Sequence[str] = ("test",),
    objects: Path | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Diagnosis:
    """Fits probes to the videos of `train` and scores them on those of `splits`, for every topic and source.

    `objects` is the objects.jsonl of the sample world, by default next to the videos. One half of the training videos fits
    the detector of patches, the other all probes; the strength of their ridge is selected on a fifth of it. Raises
    UsageError for a missing file of objects, for frames without patches, and for a split that the cache does not have.
    """
    features = CacheReader(cache)
    if features.patch_grid == (0, 0):
        raise UsageError(f"{cache}: its frames have no patches, because they were imported. Extract videos instead.")
    scenes = read_scenes(objects or _default_objects(features), features)
    training = _scenes_of_split(features, "train", scenes)
    if len(training) < 2:
        raise UsageError(
            f"{cache}: has one training video with objects, expected two or more: one half fits the detector, the other "
            "the probes."
        )
    scored = {split: _scenes_of_split(features, split, scenes) for split in splits}
    return run_probes(features, training, scored, seed=seed, report_progress=progress or (lambda _: None))


class Features(Protocol):
    """What the probes need of a cache."""

    patch_grid: tuple[int, int]

    def tokens(self, video_id: str) -> np.ndarray: ...


def run_probes(
    features: Features,
    training: Sequence[Scene],
    scored: Mapping[str, Sequence[Scene]],
    *,
    seed: int,
    report_progress: ProgressCallback = lambda progress: None,
) -> Diagnosis:
    """The diagnosis for given scenes. A topic that no question can be drawn on is left out, with a note."""
    detector_scenes = training[::2]
    probe_scenes = training[1::2]
    rng = np.random.default_rng(seed)
    count = min(MAX_QUESTIONS, MEMORY // (2 * features.tokens(probe_scenes[0].vid)[0].nbytes))
    report_progress(Progress("diagnose", 0, len(TOPICS), "the detector of patches"))
    detector_questions = draw_questions("where", detector_scenes, count=min(count, DETECTOR_FRAMES), rng=rng)
    detector = _fit_detector(detector_questions, features, rng)
    scores: dict[str, dict[str, dict[str, float]]] = {split: {} for split in scored}
    counts: dict[str, dict[str, int]] = {split: {} for split in scored}
    notes = []
    for number, topic in enumerate(TOPICS):
        report_progress(Progress("diagnose", number, len(TOPICS), topic))
        drawn = [draw_questions(topic, scenes, count=count, rng=rng) for scenes in (probe_scenes, *scored.values())]
        if not all(drawn):
            notes.append(f"{topic}: cannot be asked about so few videos, left out.")
            continue
        fitted, *others = (_QuestionSet.of(questions, features, detector) for questions in drawn)
        by_split = dict(zip(scored, others, strict=True))
        for split, row in _score_sources(topic, fitted, by_split).items():
            scores[split][topic] = row
            counts[split][topic] = len(by_split[split].questions)
    report_progress(Progress("diagnose", len(TOPICS), len(TOPICS)))
    return Diagnosis(scores, counts, tuple(notes))


@dataclass(frozen=True)
class _QuestionSet:
    """Questions with the tokens of their clips.

    `tokens` are float16 [n t 1+p c]. `detected` and `true_patch` [n t] are the patches where the detector scores highest
    and where the object is. `positions` [p f] encodes the position of every patch.
    """

    questions: Sequence[Question]
    tokens: np.ndarray
    detected: np.ndarray
    true_patch: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, questions: Sequence[Question], features: Features, detector: LinearProbe) -> _QuestionSet:
        """Reads the tokens, each video once."""
        order = sorted(questions, key=lambda question: question.vid)
        tokens = np.stack([_normed(features.tokens(q.vid)[list(q.clips)]).astype(np.float16) for q in order])
        clips = tokens.shape[1]
        detected = [
            [_patch_scores(detector, tokens[i, clip, 1:].astype(np.float32), q).argmax() for clip in range(clips)]
            for i, q in enumerate(order)
        ]
        true_patch = [[_patch_at(position, features.patch_grid) for position in q.positions] for q in order]
        positions = _position_waves(features.patch_grid, tokens.shape[-1])
        return cls(order, tokens, np.array(detected), np.array(true_patch), positions)

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [question.kind for question in self.questions]

    def answers(self, topic: str) -> np.ndarray:
        """The target of a probe [n k]: one-hot classes, or values in side lengths."""
        values = np.array([question.answer for question in self.questions])
        return np.eye(CLASSES[topic])[values[:, 0].astype(int)] if topic in CLASSES else values

    def source_features(self, source: str) -> np.ndarray:
        """The tokens of a source as features [n f], those of two clips concatenated."""
        patches = self.tokens[:, :, 1:]
        if source == "frame token":
            chosen = self.tokens[:, :, 0]
        elif source == "mean patch":
            chosen = patches.mean(2, dtype=np.float32)
        elif source == "all patches":
            chosen = patches
        else:
            patch = self.detected if source == "found patch" else self.true_patch
            chosen = np.take_along_axis(patches, patch[:, :, None, None], 2)
        if source == "found patch":
            chosen = np.concatenate([chosen[:, :, 0], self.positions[self.detected]], -1)
        return chosen.reshape(len(self.questions), -1).astype(np.float32)

    def held_out(self) -> np.ndarray:
        """The questions about every fifth video, bool [n]."""
        vids = sorted({question.vid for question in self.questions})
        chosen = set(vids[::5]) if len(vids) > 1 else set()
        return np.array([question.vid in chosen for question in self.questions])


def _score_sources(
    topic: str, fitted: _QuestionSet, by_split: Mapping[str, _QuestionSet]
) -> dict[str, dict[str, float]]:
    """For each split the score of each source, and as `chance` that of the best constant answer."""
    answers = fitted.answers(topic)
    rows: dict[str, dict[str, float]] = {split: {} for split in by_split}
    for source in SOURCES:
        probe = fit_probe(fitted.source_features(source), fitted.kinds, answers, held_out=fitted.held_out())
        for split, scored in by_split.items():
            predicted = probe.predict(scored.source_features(source), scored.kinds)
            rows[split][source] = _score(topic, predicted, scored.answers(topic))
    for split, scored in by_split.items():
        truth = scored.answers(topic)
        rows[split]["chance"] = _score(topic, np.broadcast_to(answers.mean(0), truth.shape), truth)
    return rows


def _score(topic: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy in percent, or R2 (1 - unexplained share of the variance)."""
    if topic in CLASSES:
        return 100 * float((predicted.argmax(1) == truth.argmax(1)).mean())
    spread = float(np.square(truth - truth.mean(0)).sum())
    return 1 - float(np.square(truth - predicted).sum()) / spread if spread else 0.0


def _fit_detector(questions: Sequence[Question], features: Features, rng: np.random.Generator) -> LinearProbe:
    """A probe that separates the patch of an object from other patches of the same frame, whatever their position."""
    tokens, kinds, answers = [], [], []
    for question in questions:
        patches = _normed(features.tokens(question.vid)[question.clips[0], 1:])
        positive = _patch_at(question.positions[0], features.patch_grid)
        negatives = rng.permutation([p for p in range(len(patches)) if p != positive])[:NEGATIVE_PATCHES]
        tokens.append(patches[[positive, *negatives]])
        kinds += [question.kind] * (1 + len(negatives))
        answers += [1.0] + [0.0] * len(negatives)
    return fit_probe(np.concatenate(tokens), kinds, np.array(answers)[:, None])


def _patch_scores(detector: LinearProbe, patches: np.ndarray, question: Question) -> np.ndarray:
    """The score of each patch [p c] for the object of the question."""
    return detector.predict(patches, [question.kind] * len(patches))[:, 0]


def _normed(tokens: np.ndarray) -> np.ndarray:
    """Each token with mean zero and variance one over its channels, like the last layer norm of CLIP before its weights;
    float32."""
    tokens = tokens.astype(np.float32)
    tokens = tokens - tokens.mean(-1, keepdims=True)
    return tokens / np.sqrt(np.square(tokens).mean(-1, keepdims=True) + 1e-5)


def _position_waves(grid: tuple[int, int], width: int) -> np.ndarray:
    """The position of each patch [p f]: its centre and sines and cosines of it, scaled to the norm of a token."""
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    centres = np.stack([x.ravel() - 0.5, y.ravel() - 0.5], -1)
    waves = [np.sqrt(12) * centres, *(f(np.pi * turns * centres) for turns in (1, 2, 3) for f in (np.sin, np.cos))]
    positions = np.concatenate(waves, -1)
    return positions * np.sqrt(width / positions.shape[1])


def _patch_at(position: tuple[float, float], grid: tuple[int, int]) -> int:
    row, column = (min(int(share * count), count - 1) for share, count in zip(position[::-1], grid, strict=True))
    return row * grid[1] + column


def _scenes_of_split(features: CacheReader, split: str, scenes: Mapping[str, Scene]) -> list[Scene]:
    vids = sorted({query.vid for query in read_queries(features, split)} & scenes.keys())
    if not vids:
        raise UsageError(f"{features.path}: no video of {split!r} has a row in {OBJECTS}. Is it of another sample world?")
    return [scenes[vid] for vid in vids]


def _default_objects(features: CacheReader) -> Path:
    if features.videos is None:
        raise UsageError(
            f"{features.path}: has no path to its videos. Pass the {OBJECTS} of the sample world as --objects."
        )
    return features.videos / OBJECTS


def _cell(topic: str, value: float) -> str:
    return f"{value:.1f}" if topic in CLASSES else f"{value:.2f}"
