"""Long videos in windows: every position once, short videos unchanged, and memory that does not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from costl.config import Predict, load_config
from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.model.build import build_model, cache_sizes
from costl.model.inputs import ModelInputs
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.grid import Grid
from costl.predict.postprocess import ModelOutput, to_predictions
from costl.predict.predict import predict_split
from costl.predict.sliding_window import predict_windows, window_quarters, window_ranges, windows_around
from costl.training.run_folder import Run

WIDTH = 4
sizes = st.sampled_from([8, 16, 32, 64])


class SyntheticFeatures:
    """Features of one video, whose tokens are computed when they are read: all are the value of the clip."""

    fps, patch_grid = 0.5, (1, 2)

    def __init__(self, clips: int, values: np.ndarray | None = None):
        self.clips = clips
        self.video_ids = ["v"]
        self.values = np.zeros(clips) if values is None else values

    def grid(self, video_id: str) -> Grid:
        return Grid(self.fps, self.clips / self.fps)

    def tokens(self, video_id: str, *, clips=slice(None), patches: bool = True) -> np.ndarray:
        # Like the memory map of a cache: only the clips that are read take memory.
        values = self.values[clips.start : clips.stop] if isinstance(clips, range) else self.values[clips]
        return np.repeat(values[:, None, None], 3 if patches else 1, 1).repeat(WIDTH, 2).astype(np.float16)

    def joint_vectors(self, video_id: str, *, clips=slice(None)) -> np.ndarray:
        return self.tokens(video_id, clips=clips, patches=False)[:, 0].astype(np.float32)

    def words(self, query: str) -> SentenceTokens:
        return SentenceTokens(np.ones((2, 2 * WIDTH), np.float16), np.full(WIDTH, 0.5, np.float32))


def make_queries(count: int = 1, clips: int = 10) -> list[Query]:
    return [Query(i, "a cat", "v", clips * 2.0) for i in range(count)]


def average_neighbours(inputs: ModelInputs) -> ModelOutput:
    """A fake model that reads one clip on each side, at scales of one and two clips."""
    values = inputs.tokens[inputs.video][:, :, 0, 0].double()
    near = F.pad(values, (1, 1)).unfold(1, 3, 1).mean(-1)
    coarse = F.pad(near, (0, near.shape[1] % 2)).unflatten(1, (-1, 2)).mean(-1)
    scores = torch.cat([near, coarse], 1).sigmoid().float()
    centres = torch.cat([torch.arange(near.shape[1]) + 0.5, 2 * torch.arange(coarse.shape[1]) + 1.0])
    spans = (centres[:, None] + torch.tensor([-1.0, 1.0]) * 0.5).expand(len(values), -1, -1)
    return ModelOutput(scores, spans, torch.ones(scores.shape, dtype=torch.bool), centres, values.float())


def detect_moment(inputs: ModelInputs) -> ModelOutput:
    """A fake model that predicts, from every clip inside the moment, the extent of the moment within the window."""
    values = inputs.tokens[inputs.video][:, :, 0, 0]
    clips = values.shape[1]
    index = torch.arange(clips)
    spans = torch.stack([torch.stack([index, index + 1.0], -1)] * len(values)).float()
    for row, inside in enumerate(values > 0):
        for i in index[inside].tolist():
            before = (~inside[:i]).nonzero()
            after = (~inside[i:]).nonzero()
            spans[row, i, 0] = before.max() + 1 if len(before) else 0
            spans[row, i, 1] = i + after.min() if len(after) else clips
    position_mask = torch.ones(values.shape, dtype=torch.bool)
    return ModelOutput(0.1 + 0.8 * (values > 0).float(), spans, position_mask, index + 0.5, values)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 700), sizes)
def test_windows_cover_every_clip_and_start_half_a_window_apart(clips, size):
    windows = window_ranges(clips, size)
    assert [window.start for window in windows] == [i * size // 2 for i in range(len(windows))]
    assert {clip for window in windows for clip in window} == set(range(clips))
    assert all(len(window) == size for window in windows[:-1]) and len(windows[-1]) <= size
    assert len(windows) == 1 or len(windows[-1]) > size // 2  # no window that adds nothing


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), sizes, st.integers(0, 5))
def test_windows_give_the_output_of_the_whole_video_to_a_local_model(clips, size, seed):
    features = SyntheticFeatures(clips, np.random.default_rng(seed).normal(size=clips))
    options = {"run_model": average_neighbours, "patches": True}
    whole = predict_windows(make_queries(2), features, window_clips=4 * max(clips, 2), **options)
    merged = predict_windows(make_queries(2), features, window_clips=size, **options)
    whole_order = torch.argsort(whole.centres * 10 + (whole.centres % 1 == 0))
    order = torch.argsort(merged.centres * 10 + (merged.centres % 1 == 0))
    assert torch.equal(merged.centres[order], whole.centres[whole_order])
    assert torch.equal(merged.scores[:, order], whole.scores[:, whole_order])
    assert torch.equal(merged.spans[:, order], whole.spans[:, whole_order])
    assert torch.allclose(merged.saliency, whole.saliency, atol=1e-6)


def test_saliency_is_a_mean_over_windows_weighted_towards_their_middle():
    clips, size = 53, 16

    def window_number(inputs: ModelInputs) -> ModelOutput:
        output = average_neighbours(inputs)
        window_number.calls += 1
        return replace(output, saliency=torch.full_like(output.saliency, float(window_number.calls)))

    window_number.calls = 0
    options = {"run_model": window_number, "window_clips": size, "patches": True}
    saliency = predict_windows(make_queries(), SyntheticFeatures(clips), **options).saliency[0]
    for clip in range(clips):
        weights, values = [], []
        for number, start in enumerate(range(0, 45, 8), start=1):
            end = min(start + size, clips)
            if start <= clip < end:
                weights.append(min(clip + 0.5 - start, end - clip - 0.5))
                values.append(number)
        assert saliency[clip] == pytest.approx(np.average(values, weights=weights))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_moment_is_found_wherever_in_a_long_video_it_is(data):
    size = data.draw(st.sampled_from([16, 32, 64]))
    clips = data.draw(st.integers(1, 300))
    length = data.draw(st.integers(1, min(clips, size // 4)))
    start = data.draw(st.integers(0, clips - length))
    features = SyntheticFeatures(
        clips, ((np.arange(clips) >= start) & (np.arange(clips) < start + length)).astype(float)
    )
    output = predict_windows(make_queries(), features, run_model=detect_moment, window_clips=size, patches=True)
    (prediction,) = to_predictions(
        make_queries(clips=clips),
        output,
        Predict(moments=5),
        clips=[clips],
        clip_s=2.0,
        windows=len(window_ranges(clips, size)),
    )
    assert prediction.windows[0][:2] == (2.0 * start, 2.0 * (start + length))
    assert np.argmax(prediction.saliency) == start


def test_a_video_of_one_window_is_predicted_as_without_windows(world):
    features = CacheReader(world.cache)
    config = load_config(features.settings)
    torch.manual_seed(0)
    model = build_model(config, **cache_sizes(config, features))
    queries = read_queries(features, "test")

    def predict(clips: int):
        chosen = replace(config, predict=replace(config.predict, window_clips=clips))
        return predict_split(model, queries, features, config=chosen, device=torch.device("cpu"))

    assert features.grid("test_0000").clips == 12
    assert predict(12) == predict(256)  # to the last bit
    in_windows = predict(8)
    assert in_windows != predict(12) and [p.qid for p in in_windows] == [q.qid for q in queries]
    assert all(0 <= start < end <= 24.0 for p in in_windows for start, end, _ in p.windows)
    assert {len(p.saliency) for p in in_windows} == {12}


def test_windows_are_as_long_as_the_longest_training_video_by_default(tmp_path):
    def window_clips(longest: int, **predict) -> int | None:
        run = Run(tmp_path, load_config({"predict": predict}), tmp_path, {}, {}, longest_clips=longest)
        return run.resolved_config.predict.window_clips

    assert [window_clips(clips) for clips in (12, 33, 75, 512, 5000)] == [32, 36, 76, 512, 512]
    assert window_clips(75, window_clips=64) == 64 and window_clips(0) is None


@pytest.mark.promise(8)
def test_memory_does_not_grow_with_the_length_of_the_video(monkeypatch):
    proc = Path("/proc/self")
    if not (proc / "clear_refs").exists():
        pytest.skip("only Linux resets the peak memory of a process")
    settings = {"model": {"width": 16, "heads": 2}, "predict": {"window_clips": 64}}
    config = load_config(settings)
    longest: list[int] = []

    def peak_mb(clips: int) -> float:
        features = SyntheticFeatures(clips, np.random.default_rng(0).normal(size=clips))
        _reset_peak(proc)
        before = _peak_mb(proc)
        predict_split(model, make_queries(4, clips), features, config=config, device=torch.device("cpu"))
        return _peak_mb(proc) - before

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the test above checks the shapes
    model = _small_model(config)
    model.register_forward_pre_hook(lambda _, args: longest.append(args[0].tokens.shape[1]))
    peak_mb(1000)  # the allocator keeps memory that it has used
    short = peak_mb(1000)
    long = peak_mb(8000)
    assert max(longest) == 64
    assert long < short + 16  # the tokens alone would take eight times as much


def _small_model(config):
    from costl.model.build import build_model

    sizes = {"encoder_width": WIDTH, "word_width": 2 * WIDTH, "joint_width": WIDTH}
    return build_model(config, **sizes, patch_grid=(1, 2), logit_scale=10.0)


def _reset_peak(proc: Path) -> None:
    (proc / "clear_refs").write_text("5")


def _peak_mb(proc: Path) -> float:
    return int((proc / "status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@given(size=sizes, clips=st.integers(65, 2000), middles=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_windows_around_positions_hold_them_near_their_middle(size, clips, middles):
    positions = [middle * clips for middle in middles]
    windows = windows_around(positions, clips, size)
    assert windows == sorted(set(windows), key=lambda window: window.start) and len(windows) <= len(positions)
    for position in positions:
        distances = [abs((window.start + window.stop) / 2 - position) for window in windows]
        inside = size / 2 <= position <= clips - size
        assert min(distances) <= (size / 8 if inside else size / 2 + size / 4)
    for window in windows:
        assert window.start % (size // 4) == 0 and window.stop <= clips
        assert len(window) == size or (window.stop == clips and len(window) > size * 3 / 4)


def test_windows_share_the_quarters_in_which_they_overlap():
    first, second = windows_around([20.0, 26.0], 99, 16)
    assert (first, second) == (range(12, 28), range(16, 32))
    assert window_quarters(first, 16) == [range(12, 16), range(16, 20), range(20, 24), range(24, 28)]
    assert set(window_quarters(first, 16)) & set(window_quarters(second, 16)) == {range(x, x + 4) for x in (16, 20, 24)}
    (last,) = windows_around([98.0], 99, 16)
    assert last == range(84, 99) and window_quarters(last, 16)[-1] == range(96, 99)
