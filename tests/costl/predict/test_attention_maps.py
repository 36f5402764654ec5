"""Where the model looked: the numbers are those of the forward itself, on real frames of the sample world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from costl.config import load_config
from costl.data.annotations import Query, parse_jsonl
from costl.data.batch import Batch, collate
from costl.model.build import build_for
from costl.model.costl import CoSTL
from costl.pipeline.cache.reader import CacheReader
from costl.predict.attention_maps import looks, looks_at, name_words

TOP_K = 5


@pytest.fixture(scope="module")
def features(world) -> CacheReader:
    return CacheReader(world.cache)


@pytest.fixture(scope="module")
def queries(features) -> list[Query]:
    """Sentences of different lengths about several videos, two about the same."""
    found = [query for split in ("test", "val") for query in parse_jsonl(features.annotations(split), split)]
    assert len({len(query.query.split()) for query in found}) > 1
    return found


def shaken(features: CacheReader, steps: int) -> CoSTL:
    """A model of which every part has a say, as after training."""
    torch.manual_seed(0)
    settings = {"model": {"width": 32, "heads": 2}, "spatial": {"top_k": TOP_K, "steps": steps}}
    model = build_for(load_config(settings), features)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def batch_of(queries: Sequence[Query], features: CacheReader, steps: int = 2) -> Batch:
    return collate(queries, features, patches=steps > 0)


def test_shares_sum_to_one_and_the_short_list_holds_the_largest(features, queries):
    for seen, query in zip(looks(shaken(features, 2), batch_of(queries, features)), queries, strict=True):
        assert seen.share.shape == (features.grid(query.vid).clips, np.prod(features.patch_grid))
        np.testing.assert_allclose(seen.share.sum(1), 1, atol=1e-5)
        assert (seen.chosen.sum(1) == TOP_K).all()
        for share, chosen in zip(seen.share, seen.chosen, strict=True):
            assert share[chosen].min() >= share[~chosen].max()


def test_every_word_attends_to_the_short_list_or_to_nothing(features, queries):
    for seen in looks(shaken(features, 2), batch_of(queries, features)):
        np.testing.assert_allclose(seen.attention.sum(2) + seen.nothing, 1, atol=1e-5)
        np.testing.assert_allclose(seen.heard.sum(1), 1, atol=1e-5)
        assert (seen.attention[~np.broadcast_to(seen.chosen[:, None], seen.attention.shape)] == 0).all()
        assert (seen.attention >= 0).all() and seen.attention.max() > 0.01


def test_from_the_looks_the_forward_can_be_made_again(features, queries):
    """One head, so that its mean is itself: frame = frame token + gate(step one) + gate(step two), in plain numpy sums."""
    torch.manual_seed(0)
    settings = {"model": {"width": 32, "heads": 1}, "spatial": {"top_k": TOP_K}}
    model, batch = build_for(load_config(settings), features).eval(), batch_of(queries, features)
    spatial = model.spatial
    for gate in (spatial.where_gate, spatial.what_gate):
        nn.init.normal_(gate.content.weight)
    kept = []
    spatial.register_forward_hook(lambda _, given, found: kept.append(found.frames))
    with torch.no_grad():
        model(**batch.model_inputs())
        tokens = nn.functional.layer_norm(batch.tokens, batch.tokens.shape[-1:])
        plain, patches = spatial.project(tokens[:, :, 0]), tokens[:, :, 1:]
        for row, seen in enumerate(looks(model, batch)):
            video, clips = batch.video[row], batch.clips[row]
            here, share = patches[video, :clips], torch.from_numpy(seen.share)
            mix = torch.from_numpy(np.einsum("tl,tlp->tp", seen.heard, seen.attention))
            summary = spatial.project(torch.einsum("tp,tpc->tc", share, here))
            evidence = spatial.what.out(torch.einsum("tp,tpc->tc", mix, here) @ spatial.what.value[0])
            found = mix.sum(1, keepdim=True)
            spot = torch.cat([mix / (found + 1e-4) @ spatial.places, 2 * found - 1], 1)
            frames = (
                plain[video, :clips]
                + spatial.where_gate(summary[None], (share @ spatial.places)[None])[0]
                + spatial.what_gate(evidence[None], spot[None])[0]
            )
            torch.testing.assert_close(frames, kept[0][row, :clips], rtol=1e-4, atol=1e-4)


def test_padding_is_never_attended_and_changes_nothing(features, queries):
    model, batch = shaken(features, 2), batch_of(queries, features)
    together = looks(model, batch)
    for row, query in enumerate(queries):
        assert together[row].attention.shape[1] == len(features.words(query.query).tokens)
        (alone,) = looks(model, batch_of([query], features))
        assert alone.words == together[row].words
        for name in ("share", "attention", "nothing", "heard"):
            np.testing.assert_allclose(getattr(alone, name), getattr(together[row], name), atol=1e-4, err_msg=name)
        assert (alone.chosen == together[row].chosen).all()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_that_is_not_there_shows_nothing(features, queries, steps):
    batch = batch_of(queries, features, steps)
    for seen, query in zip(looks(shaken(features, steps), batch), queries, strict=True):
        clips, patches = features.grid(query.vid).clips, steps * int(np.prod(features.patch_grid))
        assert seen.share.shape == seen.chosen.shape == (clips, patches)
        assert seen.attention.shape == (clips, 0, patches)
        assert seen.nothing.shape == seen.heard.shape == (clips, 0)
        assert "".join(seen.words) == query.query.replace(" ", "")


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_some_clips_alone_look_as_they_do_among_the_others(features, queries, steps):
    model, clips = shaken(features, steps), [7, 2, 3]
    for query, among in zip(queries, looks(model, batch_of(queries, features, steps)), strict=True):
        some = looks_at(model, query, clips, features)
        assert some.words == among.words
        for name in ("share", "chosen", "attention", "nothing", "heard"):
            np.testing.assert_allclose(getattr(some, name), getattr(among, name)[clips], atol=1e-4, err_msg=name)


def test_looking_leaves_the_model_in_the_mode_it_was_in(features, queries):
    model = shaken(features, 2).train()
    first, again = (looks(model, batch_of(queries[:1], features))[0] for _ in range(2))
    assert model.training and (first.share == again.share).all()  # no dropout while looking


@pytest.mark.parametrize(
    ("sentence", "count", "texts", "names"),
    [
        ("A dog runs", 3, ("a ", "dog ", "runs "), ("a", "dog", "runs")),
        ("skateboarder", 2, ("skate", "boarder "), ("skate-", "boarder")),
        ("It's 10 o'clock!", 8, (), ("it", "'s", "1", "0", "o", "'", "clock", "!")),
        ("a skateboarder", 3, (), ("1", "2", "3")),
    ],
)
def test_words_are_named_as_far_as_they_can_be(sentence, count, texts, names):
    assert name_words(sentence, count, texts) == names
