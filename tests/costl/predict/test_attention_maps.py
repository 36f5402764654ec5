"""Attention maps: their numbers are those of the forward, on frames of the sample world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from costl.config import load_config
from costl.data.annotations import Query, parse_jsonl
from costl.data.batch import model_inputs
from costl.model.build import build_model, cache_sizes
from costl.model.costl import CoSTL
from costl.pipeline.cache.reader import CacheReader
from costl.predict.attention_maps import AttentionMaps, clip_attention_maps, name_words

TOP_K = 5


@pytest.fixture(scope="module")
def features(world) -> CacheReader:
    return CacheReader(world.cache)


@pytest.fixture(scope="module")
def queries(features) -> list[Query]:
    """Sentences of different lengths about several videos, two about the same."""
    queries = [query for split in ("test", "val") for query in parse_jsonl(features.annotations(split), split)]
    assert len({len(query.query.split()) for query in queries}) > 1
    return queries


def noisy_model(features: CacheReader, steps: int) -> CoSTL:
    """A model with random changes to all weights, so that every part affects the outputs, as after training."""
    torch.manual_seed(0)
    settings = {"model": {"width": 32, "heads": 2}, "spatial": {"top_k": TOP_K, "steps": steps}}
    config = load_config(settings)
    model = build_model(config, **cache_sizes(config, features))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def all_maps(model: CoSTL, queries: Sequence[Query], features: CacheReader) -> list[AttentionMaps]:
    """The maps of all clips, for each query."""
    return [clip_attention_maps(model, query, slice(None), features) for query in queries]


def test_shares_sum_to_one_and_the_short_list_holds_the_largest(features, queries):
    for maps, query in zip(all_maps(noisy_model(features, 2), queries, features), queries, strict=True):
        assert maps.share.shape == (features.grid(query.vid).clips, np.prod(features.patch_grid))
        np.testing.assert_allclose(maps.share.sum(1), 1, atol=1e-5)
        assert (maps.short_list.sum(1) == TOP_K).all()
        for share, chosen in zip(maps.share, maps.short_list, strict=True):
            assert share[chosen].min() >= share[~chosen].max()


def test_every_word_attends_to_the_short_list_or_the_null_patch(features, queries):
    for maps in all_maps(noisy_model(features, 2), queries, features):
        np.testing.assert_allclose(maps.attention.sum(2) + maps.null_attention, 1, atol=1e-5)
        np.testing.assert_allclose(maps.word_weights.sum(1), 1, atol=1e-5)
        assert (maps.attention[~np.broadcast_to(maps.short_list[:, None], maps.attention.shape)] == 0).all()
        assert (maps.attention >= 0).all() and maps.attention.max() > 0.01


def test_the_forward_can_be_recomputed_from_the_attention_maps(features, queries):
    """Frame = frame token + gate(coarse step) + gate(fine step), in plain sums; one head, so that it is the mean of all."""
    torch.manual_seed(0)
    settings = {"model": {"width": 32, "heads": 1}, "spatial": {"top_k": TOP_K}}
    config = load_config(settings)
    model = build_model(config, **cache_sizes(config, features)).eval()
    inputs = model_inputs(queries, features, patches=True)
    spatial = model.spatial
    for gate in (spatial.coarse_gate, spatial.fine_gate):
        nn.init.normal_(gate.content.weight)
    outputs = []
    spatial.register_forward_hook(lambda _, inputs, output: outputs.append(output.frames))
    with torch.no_grad():
        model(inputs)
        tokens = nn.functional.layer_norm(inputs.tokens, inputs.tokens.shape[-1:])
        frame_tokens = spatial.project(tokens[:, :, 0])
        patches = tokens[:, :, 1:]
        for row, maps in enumerate(all_maps(model, queries, features)):
            video, clips = inputs.video[row], len(maps.share)
            own_patches = patches[video, :clips]
            share = torch.from_numpy(maps.share)
            mix = torch.from_numpy(np.einsum("tl,tlp->tp", maps.word_weights, maps.attention))
            summary = spatial.project(torch.einsum("tp,tpc->tc", share, own_patches))
            evidence = spatial.fine.out(torch.einsum("tp,tpc->tc", mix, own_patches) @ spatial.fine.value[0])
            total = mix.sum(1, keepdim=True)
            position = torch.cat([mix / (total + 1e-4) @ spatial.patch_positions, 2 * total - 1], 1)
            frames = (
                frame_tokens[video, :clips]
                + spatial.coarse_gate(summary[None], (share @ spatial.patch_positions)[None])[0]
                + spatial.fine_gate(evidence[None], position[None])[0]
            )
            torch.testing.assert_close(frames, outputs[0][row, :clips], rtol=1e-4, atol=1e-4)


def test_maps_of_a_missing_step_are_empty(features, queries):
    steps = 1
    for maps, query in zip(all_maps(noisy_model(features, steps), queries, features), queries, strict=True):
        clips, patches = features.grid(query.vid).clips, steps * int(np.prod(features.patch_grid))
        assert maps.share.shape == maps.short_list.shape == (clips, patches)
        assert maps.attention.shape == (clips, 0, patches)
        assert maps.null_attention.shape == maps.word_weights.shape == (clips, 0)
        assert "".join(maps.words) == query.query.replace(" ", "")


@pytest.mark.parametrize("steps", [1, 2])
def test_the_maps_of_some_clips_are_those_of_the_whole_video(features, queries, steps):
    model = noisy_model(features, steps)
    clips = [7, 2, 3]
    for query, whole in zip(queries, all_maps(model, queries, features), strict=True):
        part = clip_attention_maps(model, query, clips, features)
        assert part.words == whole.words
        for name in ("share", "short_list", "attention", "null_attention", "word_weights"):
            np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[clips], atol=1e-4, err_msg=name)


def test_attention_maps_do_not_change_the_mode_of_the_model(features, queries):
    model = noisy_model(features, 2).train()
    (first,), (again,) = (all_maps(model, queries[:1], features) for _ in range(2))
    assert model.training and (first.share == again.share).all()  # without dropout


@pytest.mark.parametrize(
    ("sentence", "count", "texts", "names"),
    [
        ("A dog runs", 3, ("a ", "dog ", "runs "), ("a", "dog", "runs")),
        ("skateboarder", 2, ("skate", "boarder "), ("skate-", "boarder")),
        ("It's 10 o'clock!", 8, (), ("it", "'s", "1", "0", "o", "'", "clock", "!")),
        ("a skateboarder", 3, (), ("1", "2", "3")),
    ],
)
def test_words_are_named_where_possible(sentence, count, texts, names):
    assert name_words(sentence, count, texts) == names
