"""Long videos in windows: nothing lost, nothing twice, a short one untouched, and memory that does not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from costl.config import load_config
from costl.data.annotations import Query
from costl.data.batch import Batch
from costl.data.splits import read_queries
from costl.model.build import build_for
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.grid import Grid
from costl.predict.postprocess import CANDIDATES, to_predictions
from costl.predict.predict import predict_split
from costl.predict.sliding_window import Said, by_video, walk, windows
from costl.training.run_folder import Run

WIDTH = 4
sizes = st.sampled_from([8, 16, 32, 64])


class Long:
    """Features of a video that exists nowhere: each clip's tokens are made when they are asked for."""

    fps, patch_grid = 0.5, (1, 2)
    joint = Joint(np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32), 1e-5, np.eye(WIDTH, dtype=np.float32), 10.0)

    def __init__(self, clips: int, shown: np.ndarray | None = None):
        self.clips = clips
        self.video_ids = ["v"]
        self.shown = np.zeros(clips) if shown is None else shown

    def grid(self, video_id: str) -> Grid:
        return Grid(self.fps, self.clips / self.fps)

    def tokens(self, video_id: str, *, clips=slice(None), patches: bool = True) -> np.ndarray:
        # Like the memory map of a cache: only what is asked for takes memory.
        shown = self.shown[clips.start : clips.stop] if isinstance(clips, range) else self.shown[clips]
        return np.repeat(shown[:, None, None], 3 if patches else 1, 1).repeat(WIDTH, 2).astype(np.float16)

    def words(self, query: str) -> Words:
        return Words(np.ones((2, 2 * WIDTH), np.float16), np.full(WIDTH, 0.5, np.float32))


def asked(count: int = 1, clips: int = 10) -> list[Query]:
    return [Query(i, "a cat", "v", clips * 2.0) for i in range(count)]


def see_neighbours(batch: Batch) -> Said:
    """A stand-in for the model that looks one clip to each side, at scales of one and two clips."""
    shown = batch.tokens[batch.video][:, :, 0, 0].double()
    near = F.pad(shown, (1, 1)).unfold(1, 3, 1).mean(-1)
    coarse = F.pad(near, (0, near.shape[1] % 2)).unflatten(1, (-1, 2)).mean(-1)
    scores = torch.cat([near, coarse], 1).sigmoid().float()
    centres = torch.cat([torch.arange(near.shape[1]) + 0.5, 2 * torch.arange(coarse.shape[1]) + 1.0])
    spans = (centres[:, None] + torch.tensor([-1.0, 1.0]) * 0.5).expand(len(shown), -1, -1)
    return Said(scores, spans, torch.ones(scores.shape, dtype=torch.bool), centres, shown.float())


def see_moment(batch: Batch) -> Said:
    """A stand-in that says, from every clip that shows it, how far the moment reaches inside the window."""
    shown = batch.tokens[batch.video][:, :, 0, 0]
    clips = shown.shape[1]
    at = torch.arange(clips)
    spans = torch.stack([torch.stack([at, at + 1.0], -1)] * len(shown)).float()
    for row, seen in enumerate(shown > 0):
        for i in at[seen].tolist():
            before, after = (~seen[:i]).nonzero(), (~seen[i:]).nonzero()
            spans[row, i, 0] = before.max() + 1 if len(before) else 0
            spans[row, i, 1] = i + after.min() if len(after) else clips
    whole = torch.ones(shown.shape, dtype=torch.bool)
    return Said(0.1 + 0.8 * (shown > 0).float(), spans, whole, at + 0.5, shown)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 700), sizes)
def test_windows_cover_every_clip_and_begin_half_a_window_apart(clips, size):
    places = windows(clips, size)
    assert [place.start for place in places] == [i * size // 2 for i in range(len(places))]
    assert {clip for place in places for clip in place} == set(range(clips))
    assert all(len(place) == size for place in places[:-1]) and len(places[-1]) <= size
    assert len(places) == 1 or len(places[-1]) > size // 2  # no window that adds nothing


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), sizes, st.integers(0, 5))
def test_a_model_that_looks_less_far_than_a_quarter_window_says_the_same_as_of_the_whole(clips, size, seed):
    features = Long(clips, np.random.default_rng(seed).normal(size=clips))
    whole = walk(asked(2), features, ask=see_neighbours, size=4 * max(clips, 2), patches=True)
    parts = walk(asked(2), features, ask=see_neighbours, size=size, patches=True)
    order, same = (torch.argsort(said.centres * 10 + (said.centres % 1 == 0)) for said in (parts, whole))
    assert torch.equal(parts.centres[order], whole.centres[same])
    assert torch.equal(parts.scores[:, order], whole.scores[:, same])
    assert torch.equal(parts.spans[:, order], whole.spans[:, same])
    assert torch.allclose(parts.saliency, whole.saliency, atol=1e-6)


def test_saliency_is_the_mean_over_windows_weighted_by_the_distance_to_their_edges():
    clips, size = 53, 16

    def numbered(batch: Batch) -> Said:
        said = see_neighbours(batch)
        numbered.calls += 1
        return replace(said, saliency=torch.full_like(said.saliency, float(numbered.calls)))

    numbered.calls = 0
    found = walk(asked(), Long(clips), ask=numbered, size=size, patches=True).saliency[0]
    for clip in range(clips):
        weights, values = [], []
        for number, start in enumerate(range(0, 45, 8), start=1):
            end = min(start + size, clips)
            if start <= clip < end:
                weights.append(min(clip + 0.5 - start, end - clip - 0.5))
                values.append(number)
        assert found[clip] == pytest.approx(np.average(values, weights=weights))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_moment_is_found_wherever_in_a_long_video_it_is(data):
    size = data.draw(st.sampled_from([16, 32, 64]))
    clips = data.draw(st.integers(1, 300))
    length = data.draw(st.integers(1, min(clips, size // 4)))
    start = data.draw(st.integers(0, clips - length))
    features = Long(clips, ((np.arange(clips) >= start) & (np.arange(clips) < start + length)).astype(float))
    said = walk(asked(), features, ask=see_moment, size=size, patches=True)
    (prediction,) = to_predictions(
        asked(clips=clips),
        scores=said.scores,
        spans=said.spans,
        positions=said.positions,
        saliency=said.saliency,
        clips=[clips],
        clip_s=2.0,
        moments=5,
        nms_sigma=0.5,
        min_score=0.0,
        candidates=CANDIDATES * len(windows(clips, size)),
    )
    assert prediction.windows[0][:2] == (2.0 * start, 2.0 * (start + length))
    assert np.argmax(prediction.saliency) == start


def test_queries_about_one_video_travel_together_but_not_too_many():
    queries = [replace(query, vid="vw"[query.qid % 2]) for query in asked(20)]
    groups = list(by_video(queries))
    assert [len(group) for group in groups] == [8, 2, 8, 2]
    assert all(len({query.vid for query in group}) == 1 for group in groups)


def test_a_video_of_one_window_gets_exactly_the_answer_it_gets_without_windows(world):
    features = CacheReader(world.cache)
    config = load_config(features.settings)
    torch.manual_seed(0)
    model, queries = build_for(config, features), read_queries(features, "test")

    def predict(clips: int):
        chosen = replace(config, predict=replace(config.predict, window_clips=clips))
        return predict_split(model, queries, features, config=chosen, device=torch.device("cpu"))

    assert features.grid("test_0000").clips == 12
    assert predict(12) == predict(256)  # to the last bit
    walked = predict(8)
    assert walked != predict(12) and [p.qid for p in walked] == [q.qid for q in queries]
    assert all(0 <= a < b <= 24.0 for p in walked for a, b, _ in p.windows)
    assert {len(p.saliency) for p in walked} == {12}


def test_windows_are_as_long_as_the_longest_video_of_training_unless_set(tmp_path):
    def settled(longest: int, **predict) -> int | None:
        return Run(
            tmp_path, load_config({"predict": predict}), tmp_path, {}, {}, longest_clips=longest
        ).settled.predict.window_clips

    assert [settled(clips) for clips in (12, 33, 75, 512, 5000)] == [32, 36, 76, 512, 512]
    assert settled(75, window_clips=64) == 64 and settled(0) is None


@pytest.mark.promise(8)
def test_memory_does_not_grow_with_the_length_of_the_video():
    proc = Path("/proc/self")
    if not (proc / "clear_refs").exists():
        pytest.skip("only Linux tells the highest memory of a stretch of time")
    settings = {"model": {"width": 16, "heads": 2}, "predict": {"window_clips": 64}}
    config = load_config(settings)
    longest: list[int] = []

    def highest_mb(clips: int) -> float:
        features = Long(clips, np.random.default_rng(0).normal(size=clips))
        _forget_highest(proc)
        before = _highest_mb(proc)
        predict_split(model, asked(4, clips), features, config=config, device=torch.device("cpu"))
        return _highest_mb(proc) - before

    model = _small_model(config)
    model.register_forward_pre_hook(lambda _, args, kw: longest.append(kw["tokens"].shape[1]), with_kwargs=True)
    highest_mb(1000)  # the allocator keeps what it once had
    short, long = highest_mb(1000), highest_mb(8000)
    assert max(longest) == 64
    assert long < short + 16  # the tokens alone would take eight times as much


def _small_model(config):
    from costl.model.costl import build_model

    joint = {name: torch.as_tensor(value) for name, value in vars(Long.joint).items()}
    return build_model(config, clip_width=WIDTH, word_width=2 * WIDTH, patch_grid=(1, 2), joint=joint)


def _forget_highest(proc: Path) -> None:
    (proc / "clear_refs").write_text("5")


def _highest_mb(proc: Path) -> float:
    return int((proc / "status").read_text().split("VmHWM:")[1].split()[0]) / 1024
