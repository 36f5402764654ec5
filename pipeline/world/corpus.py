"""What is true in every video of a sample world: the moments of each sentence in all videos of a split.

A sentence of one video may name several things of another video ("the ball", where there are two). It is true there when it
is true of one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from costl.pipeline.world.sentences import Sentence, every_true_sentence, expected_grade, track_names, true_runs
from costl.pipeline.world.tracks import CLIP_S, Track

# Their sentences are also asked in the other splits. Those of train would be too many.
ASKED_ELSEWHERE = ("val", "test", "test_unseen", "test_unseen_relation")

Tracks = Mapping[str, Sequence[Track]]  # of each video


def corpus_rows(tracks: Mapping[str, Tracks], queries: Mapping[str, Sequence[Sentence]]) -> Iterator[dict[str, Any]]:
    """The rows of corpus.jsonl, split after split, from the tracks of each video and the queries of each split.

    Each split has a row for every distinct sentence of its queries, then one for every sentence of the queries of the other
    evaluation splits that is true in none of its videos. `videos` has the windows [start_s, end_s, relevance] of every
    video in which the sentence is true. The relevance is 1 to 4: the grade of the clips without the bias and the noise of a
    rater. `absent` is "object" where no video of the split has a thing of one of the names, "event" where all names occur.
    """
    for split, videos in tracks.items():
        own = _distinct(queries[split])
        others = _distinct([s for other in ASKED_ELSEWHERE if other != split for s in queries.get(other, ())])
        others = {text: sentence for text, sentence in others.items() if text not in own}
        truth: dict[str, dict[str, list[list[int]]]] = {text: {} for text in [*own, *others]}
        for vid, of_video in videos.items():
            for text, windows in true_windows(of_video, truth).items():
                truth[text][vid] = windows
        names = {name for of_video in videos.values() for track in of_video for name in track_names(track)}
        for text, sentence in own.items():
            yield {"split": split, "sentence": text, "kind": sentence.kind, "videos": truth[text]}
        for text, sentence in others.items():
            if not truth[text]:
                absent = "event" if names.issuperset(sentence.names) else "object"
                yield {"split": split, "sentence": text, "kind": sentence.kind, "absent": absent, "videos": {}}


def true_windows(tracks: Sequence[Track], texts: Collection[str]) -> dict[str, list[list[int]]]:
    """The windows [start_s, end_s, relevance] of each sentence of `texts` that is true in the video of these tracks."""
    strengths: dict[str, np.ndarray] = {}
    for sentence in every_true_sentence(list(tracks)):
        if sentence.text in texts:
            other = strengths.get(sentence.text)
            strengths[sentence.text] = sentence.strength if other is None else np.maximum(other, sentence.strength)
    return {text: [_window(strength, run) for run in true_runs(strength)] for text, strength in strengths.items()}


def _window(strength: np.ndarray, run: tuple[int, int]) -> list[int]:
    begin, end = run
    return [begin * CLIP_S, end * CLIP_S, int(expected_grade(strength[begin:end]).mean().round())]


def _distinct(sentences: Sequence[Sentence]) -> dict[str, Sentence]:
    """The first sentence of each text."""
    distinct: dict[str, Sentence] = {}
    for sentence in sentences:
        distinct.setdefault(sentence.text, sentence)
    return distinct
