"""Linear probes of frozen tokens: what do they contain about the objects of a sample world, and where they are?

Every question names an object by colour and shape, as a sentence does. A probe is linear in the tokens (see
`costl.experiments.linear_probe`), is fitted to videos of `train` and scored on others. Each question has a probe for every
source of tokens: the difference between sources shows what patches contain that the frame token lacks.

Axes: n questions, t clips of a question, p patches, c channels of a token, f features of a source, k values of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.data.queries import read_queries
from costl.experiments.linear_probe import Kind, LinearProbe, fit_probe
from costl.experiments.world_truth import FIELDS, OBJECTS, Question, Scene, draw_questions, read_scenes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.table import table
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
    `asked[split][topic]`: the number of questions."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    asked: Mapping[str, Mapping[str, int]]
    notes: Sequence[str] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """A table for each split: a row for each topic, a column for each source."""
        lines: list[str] = []
        for split, by_topic in self.scores.items():
            rows = []
            for topic, row in by_topic.items():
                digits = 1 if topic in CLASSES else 2
                rows.append([topic, self.asked[split][topic], *(f"{score:.{digits}f}" for score in row.values())])
            lines += [*([""] if lines else []), *table([split, "asked", *SOURCES, "chance"], rows)]
        return lines

    def data(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)

    def messages(self) -> list[str]:
        """The meaning of the topics and sources, and the notes."""
        return [*(f"{name}: {meaning}." for name, meaning in (TOPICS | SOURCES).items()), *self.notes]


def diagnose(
    cache: Path,
    *,
    splits: Sequence[str] = ("test",),
    objects: Path | None = None,
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
    scenes = read_scenes(objects or (features.videos or Path()) / OBJECTS, features)
    scored = {split: _scenes_of_split(features, split, scenes) for split in splits}
    return run_probes(features, _scenes_of_split(features, "train", scenes), scored, progress)


def run_probes(
    features: CacheReader,
    training: Sequence[Scene],
    scored: Mapping[str, Sequence[Scene]],
    progress: ProgressCallback | None = None,
) -> Diagnosis:
    """The diagnosis for given scenes. A topic that no question can be drawn on is left out, with a note."""
    report_progress = progress or (lambda _: None)
    probe_scenes = training[1::2] or training
    rng = np.random.default_rng(0)
    count = min(MAX_QUESTIONS, MEMORY // (2 * features.tokens(probe_scenes[0].vid)[0].nbytes))
    report_progress(Progress("diagnose", 0, len(TOPICS), "the detector of patches"))
    detector_questions = draw_questions("where", training[::2], count=min(count, DETECTOR_FRAMES), rng=rng)
    detector = _fit_detector(detector_questions, features, rng)
    scores: dict[str, dict[str, dict[str, float]]] = {split: {} for split in scored}
    asked: dict[str, dict[str, int]] = {split: {} for split in scored}
    notes = []
    for number, topic in enumerate(TOPICS):
        report_progress(Progress("diagnose", number, len(TOPICS), topic))
        # Sorted, so that the tokens of a video are read one after the other.
        fitted, *others = (
            sorted(draw_questions(topic, scenes, count=count, rng=rng), key=lambda question: question.vid)
            for scenes in (probe_scenes, *scored.values())
        )
        if not (fitted and all(others)):
            notes.append(f"{topic}: cannot be asked about so few videos, left out.")
            continue
        answers = _answers(topic, fitted)
        probes = _fit_probes(fitted, answers, features, detector)
        for split, questions in zip(scored, others, strict=True):
            truth = _answers(topic, questions)
            predicted = {
                source: probes[source].predict(tokens, _kinds(questions))
                for source, tokens in _read_sources(questions, features, detector)
            }
            predicted["chance"] = np.broadcast_to(answers.mean(0), truth.shape)  # the best constant answer
            scores[split][topic] = {source: _score(topic, values, truth) for source, values in predicted.items()}
            asked[split][topic] = len(questions)
    report_progress(Progress("diagnose", len(TOPICS), len(TOPICS)))
    return Diagnosis(scores, asked, notes)


def _fit_probes(
    questions: Sequence[Question], answers: np.ndarray, features: CacheReader, detector: LinearProbe
) -> dict[str, LinearProbe]:
    """A probe for each source. The questions about every fifth video choose the strength of the ridge."""
    vids = sorted({question.vid for question in questions})
    held_out = np.array([question.vid in vids[::5] for question in questions])
    return {
        source: fit_probe(tokens, _kinds(questions), answers, held_out=held_out)
        for source, tokens in _read_sources(questions, features, detector)
    }


def _read_sources(
    questions: Sequence[Question], features: CacheReader, detector: LinearProbe
) -> Iterator[tuple[str, np.ndarray]]:
    """Each source with its features [n f] for every question; those of two clips are concatenated."""
    grid = features.patch_grid
    # [n t 1+p c]
    tokens = np.stack([_normed(features.tokens(q.vid)[list(q.clips)]).astype(np.float16) for q in questions])
    patches = tokens[:, :, 1:]
    there = np.array([[_patch_at(position, grid) for position in q.positions] for q in questions])  # [n t]
    found = np.array(
        [
            [detector.predict(frame.astype(np.float32), [q.kind] * len(frame)).argmax() for frame in frames]
            for q, frames in zip(questions, patches, strict=True)
        ]
    )
    positions = _position_waves(grid, tokens.shape[-1])[found]
    sources = {
        "frame token": tokens[:, :, 0],
        "mean patch": patches.mean(2, dtype=np.float32),
        "all patches": patches,
        "found patch": np.concatenate([_at(patches, found), positions], -1),
        "patch there": _at(patches, there),
    }
    for source, values in sources.items():
        yield source, values.reshape(len(questions), -1).astype(np.float32)


def _at(patches: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The patch [n t c] at `index` [n t] of all patches [n t p c]."""
    return np.take_along_axis(patches, index[:, :, None, None], 2)[:, :, 0]


def _kinds(questions: Sequence[Question]) -> list[Kind]:
    return [question.kind for question in questions]


def _answers(topic: str, questions: Sequence[Question]) -> np.ndarray:
    """The target of a probe [n k]: one-hot classes, or values in side lengths."""
    values = np.array([question.answer for question in questions])
    return np.eye(CLASSES[topic])[values[:, 0].astype(int)] if topic in CLASSES else values


def _score(topic: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy in percent, or R2 (1 - unexplained share of the variance)."""
    if topic in CLASSES:
        return 100 * float((predicted.argmax(1) == truth.argmax(1)).mean())
    spread = float(np.square(truth - truth.mean(0)).sum())
    return 1 - float(np.square(truth - predicted).sum()) / spread if spread else 0.0


def _fit_detector(questions: Sequence[Question], features: CacheReader, rng: np.random.Generator) -> LinearProbe:
    """A probe that separates the patch of an object from other patches of the same frame, whatever their position."""
    tokens, kinds, answers = [], [], []
    for question in questions:
        patches = _normed(features.tokens(question.vid)[question.clips[0], 1:])
        positive = _patch_at(question.positions[0], features.patch_grid)
        negatives = rng.permutation(np.delete(np.arange(len(patches)), positive))[:NEGATIVE_PATCHES]
        tokens.append(patches[[positive, *negatives]])
        kinds += [question.kind] * (1 + len(negatives))
        answers += [1.0] + [0.0] * len(negatives)
    return fit_probe(np.concatenate(tokens), kinds, np.array(answers)[:, None])


def _normed(tokens: np.ndarray) -> np.ndarray:
    """Each token with mean zero and variance one over its channels, like the last layer norm of CLIP before its weights;
    float32."""
    centred = tokens.astype(np.float32)
    centred -= centred.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)


def _position_waves(grid: tuple[int, int], width: int) -> np.ndarray:
    """The position of each patch [p f]: its centre and sines and cosines of it, scaled to the norm of a token."""
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    centres = np.stack([x.ravel() - 0.5, y.ravel() - 0.5], -1)
    waves = [np.sqrt(12) * centres, *(f(np.pi * turns * centres) for turns in (1, 2, 3) for f in (np.sin, np.cos))]
    positions = np.concatenate(waves, -1)
    return positions * np.sqrt(width / positions.shape[1])


def _patch_at(position: Sequence[float], grid: tuple[int, int]) -> int:
    row, column = (min(int(share * count), count - 1) for share, count in zip(position[::-1], grid, strict=True))
    return row * grid[1] + column


def _scenes_of_split(features: CacheReader, split: str, scenes: Mapping[str, Scene]) -> list[Scene]:
    vids = sorted({query.vid for query in read_queries(features, split)} & scenes.keys())
    if not vids:
        raise UsageError(f"{features.path}: no video of {split!r} has a row in {OBJECTS}. Is it of another sample world?")
    return [scenes[vid] for vid in vids]
