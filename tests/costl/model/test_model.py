"""The model: its two spatial steps against plain loops, its indifference to padding, and one batch learned by heart."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from costl.config import Config, load_config
from costl.data.annotations import Query
from costl.data.batch import Batch, collate
from costl.metrics.compute import compute_metrics
from costl.model.build import build_model as build_any
from costl.model.contrast import RIVAL_STEP, Match, unit_length
from costl.model.costl import CoSTL, Outputs, build_model
from costl.model.heads import anchors
from costl.model.spatial import SpatialEncoder, WhatStep, WhereStep, place_waves
from costl.model.temporal import Attention, TextPool
from costl.model.tokens import Asks, Tokens, score_own
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CacheError
from costl.pipeline.grid import Grid
from costl.predict.postprocess import to_predictions
from costl.training.checkpoint import fit_weights, load_checkpoint, save_checkpoint
from costl.training.objective import total_loss

C, W, E, D = 12, 10, 8, 16
SMALL = {"model": {"width": D, "heads": 2, "dropout": 0.0, "input_dropout": 0.0}, "spatial": {"top_k": 4}}
VARIANTS = [
    *([f"spatial.steps={n}"] for n in (0, 1, 2)),
    ["spatial.clip_prior=false"],
    ["temporal.strides=[1]"],
    ["temporal.top_down=true"],
    ["temporal.layers=0"],
    ["temporal.null_tokens=0"],
    ["spatial.top_k=1"],
    ["spatial.top_k=999", "temporal.kernel=1"],
]
every_variant = pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)


def joint_space(draw: torch.Generator) -> dict[str, Tensor]:
    weight, bias, projection = (torch.randn(*n, generator=draw) for n in ((C,), (C,), (C, E)))
    scale = {"norm_eps": torch.tensor(1e-5), "logit_scale": torch.tensor(10.0), "normed": torch.tensor(True)}
    return {"norm_weight": 1 + 0.1 * weight, "norm_bias": 0.1 * bias, "projection": projection, **scale}


def small_model(*overrides: str, grid: tuple[int, int] = (2, 3), shaken: bool = True) -> CoSTL:
    """A model in evaluation mode; `shaken`, no gate of it is at zero, so that every part has a say."""
    torch.manual_seed(0)
    config = load_config(SMALL, overrides=overrides)
    joint = joint_space(torch.Generator().manual_seed(1))
    model = build_model(config, clip_width=C, word_width=W, patch_grid=grid, joint=joint).eval()
    with torch.no_grad():
        for parameter in model.parameters() if shaken else ():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_inputs(
    clips: list[int], asked: list[tuple[int, int]], *, patches: int = 6, garbage: float = 0.0
) -> dict[str, Tensor]:
    """Inputs of the model for videos of so many clips and sentences (video, words); `garbage` fills the padding."""
    draw = torch.Generator().manual_seed(2)
    frame_mask = torch.arange(max(clips)) < torch.tensor(clips)[:, None]
    word_mask = torch.arange(max(n for _, n in asked)) < torch.tensor([n for _, n in asked])[:, None]
    tokens = torch.randn(*frame_mask.shape, 1 + patches, C, generator=draw)
    words = torch.randn(*word_mask.shape, W, generator=draw)
    return {
        "tokens": torch.where(frame_mask[..., None, None], tokens, garbage),
        "frame_mask": frame_mask,
        "video": torch.tensor([v for v, _ in asked]),
        "words": torch.where(word_mask[..., None], words, garbage),
        "word_mask": word_mask,
        "sentence": nn.functional.normalize(torch.randn(len(asked), E, generator=draw), dim=-1),
    }


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """The batch of one that holds this sentence and its video, without any padding."""
    video, real_words = int(inputs["video"][row]), inputs["word_mask"][row]
    real_frames = inputs["frame_mask"][video]
    return {
        "tokens": inputs["tokens"][video, real_frames][None],
        "frame_mask": real_frames[real_frames][None],
        "video": torch.zeros(1, dtype=torch.long),
        "words": inputs["words"][row, real_words][None],
        "word_mask": real_words[real_words][None],
        "sentence": inputs["sentence"][row : row + 1],
    }


def run(model: CoSTL, inputs: dict[str, Tensor]) -> Outputs:
    with torch.no_grad():
        return model(**inputs)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def unchanged(tokens: Tensor) -> Tokens:
    """These tokens as if they were normed already."""
    return Tokens(
        tokens, torch.zeros(tokens.shape[:3]), torch.ones(tokens.shape[:3]), torch.ones(len(tokens), tokens.shape[3])
    )


# --- layers against loops ----------------------------------------------------------------------------------------


def test_step_one_is_a_loop_over_sentences_and_frames():
    torch.manual_seed(0)
    step, video = WhereStep(top_k=3), torch.tensor([1, 0, 1])
    tokens, learned = torch.randn(2, 4, 1 + 7, C), torch.randn(3, 4, 7)
    found = step(unchanged(tokens), Asks.of(video, 2), learned)
    for b in range(3):
        for t in range(4):
            here, share = tokens[video[b], t, 1:], learned[b, t].softmax(0)
            best = sorted(range(7), key=lambda p: -share[p])[:3]
            assert close(found.share[b, t], share)
            assert close(found.summary[b, t], (share[:, None] * here).sum(0))
            assert found.chosen[b, t].tolist() == best
            assert close(found.short_list[b, t], here[best])


def test_step_two_is_a_loop_over_heads_frames_and_words():
    torch.manual_seed(0)
    step = WhatStep(clip_width=C, width=8, heads=2)
    short_list, score, words = torch.randn(2, 3, 5, C), torch.randn(2, 3, 4, 5), torch.randn(2, 4, 8)
    real = [4, 2]
    word_mask = torch.arange(4) < torch.tensor(real)[:, None]
    found = step(short_list, score, words, word_mask)
    for b in range(2):
        standing = [number / (real[b] - 1) - 0.5 for number in range(real[b])]
        parts = [step.part(word) + step.order * where for word, where in zip(words[b], standing, strict=False)]
        heard = torch.stack(parts).softmax(0).T
        assert close(found.heard[b], nn.functional.pad(heard, (0, 4 - real[b])))
        for t in range(3):
            by_word = []
            for number, word in enumerate(words[b, : real[b]]):
                by_word.append(torch.cat([score[b, t, number], step.null(word) + np.log(2)]).softmax(0))
                assert close(found.by_word[b, t, number], by_word[-1])
            brought = []
            for h in range(2):
                attention = heard[h] @ torch.stack(by_word)[:, :-1]
                assert close(found.attention[b, h, t], attention)
                brought.append(attention @ short_list[b, t] @ step.value[h])
            assert close(found.evidence[b, t], step.out(torch.cat(brought)))


def test_heads_begin_at_different_places_of_a_sentence():
    """Untrained, on words that tell nothing: the first head listens to the first word most, the last to the last."""
    step, words, score = WhatStep(clip_width=C, width=8, heads=4), torch.zeros(1, 5, 8), torch.zeros(1, 1, 5, 3)
    heard = step(torch.zeros(1, 1, 3, C), score, words, torch.tensor([[True] * 4 + [False]])).heard[0]
    assert heard[0].argmax() == 0 and heard[-1].argmax() == 3
    standing = heard[:, :4] @ torch.arange(4.0)
    assert (standing.diff() > 0).all()


def test_frames_match_a_text_by_the_best_patches_of_each_word():
    torch.manual_seed(0)
    encoder = SpatialEncoder(clip_width=C, width=D, patch_grid=(2, 3), heads=2, steps=2, top_k=4, dropout=0.0).eval()
    tokens, video = torch.randn(2, 5, 7, C), torch.tensor([1, 0, 1])
    sentence, words = torch.randn(3, D), torch.randn(3, 3, D)
    word_mask = torch.tensor([[True] * 3, [True, False, False], [True, True, False]])
    found = encoder(tokens, video, sentence, words, word_mask).match
    normed = nn.functional.layer_norm(tokens, (C,))[:, :, 1:]
    for b in range(3):
        asked = [encoder.ask_sentence(sentence[b]), *encoder.ask_words(words[b, word_mask[b]])]
        asked = [encoder.to_clip(text) for text in asked]
        for v in range(2):
            for t in range(5):
                sentence_best, *best = ((normed[v, t] @ text).exp().sum().log() for text in asked)
                by_words = sum(best) / len(best)
                if v == video[b]:
                    assert close(found.own[:, b, t], torch.stack([sentence_best, by_words]))
                if t % RIVAL_STEP == 0:
                    assert close(found.rivals[:, b, v, t // RIVAL_STEP], torch.stack([sentence_best, by_words]))


def test_a_text_scores_the_tokens_of_its_own_video():
    torch.manual_seed(0)
    texts, tokens, video = torch.randn(4, 2, C), torch.randn(3, 5, 7, C), torch.tensor([2, 0, 2, 1])
    assert close(
        score_own(texts, unchanged(tokens), Asks.of(video, 3)), torch.einsum("bmc,btnc->bmtn", texts, tokens[video])
    )


@given(st.floats(-10, 10), st.floats(0.01, 100), st.integers(0, 2**31))
def test_tokens_that_are_never_written_normed_give_what_normed_ones_do(mean, spread, seed):
    """Wherever they lie and however wide, channels dropped or not."""
    draw = torch.Generator().manual_seed(seed)
    raw = spread * (mean + torch.randn(2, 3, 5, 64, generator=draw))
    raw[0, 1] = 0.0  # padding
    kept = (torch.rand(2, 64, generator=draw) > 0.3) / 0.7
    tokens, normed = Tokens.of(raw, kept), nn.functional.layer_norm(raw, (64,)) * kept[:, None, None]
    texts, share = torch.randn(2, 4, 64, generator=draw) / 8, torch.rand(2, 4, 3, 5, generator=draw).softmax(-1)
    near = partial(torch.allclose, rtol=1e-3, atol=1e-2)
    assert near(tokens.frames(), normed[:, :, 0])
    assert near(tokens.scores(texts), torch.einsum("vmc,vtnc->vmtn", texts, normed))
    assert near(tokens.blended(share), torch.einsum("vmtn,vtnc->vmtc", share, normed))
    assert near(tokens.some(2, 3).scores(texts), torch.einsum("vmc,vtnc->vmtn", texts, normed[:, ::2, 1::3]))
    chosen, video = torch.randint(4, (3, 3, 2), generator=draw), torch.tensor([1, 0, 1])
    by_hand = [[[normed[v, t, 1 + int(p)] for p in chosen[b, t]] for t in range(3)] for b, v in enumerate(video)]
    assert near(
        tokens.patches(video, chosen), torch.stack([torch.stack([torch.stack(x) for x in row]) for row in by_hand])
    )


def test_attention_is_softmax_of_scaled_products_over_what_is_real():
    torch.manual_seed(0)
    layer, x, source = Attention(width=8, heads=2), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    key, value = layer.key_value(source[0, :4]).chunk(2, -1)
    query = layer.query(x[0])
    heads = [(query[:, p] @ key[:, p].T / 2).softmax(-1) @ value[:, p] for p in (slice(0, 4), slice(4, 8))]
    mask = torch.tensor([[True] * 4 + [False]])
    assert close(layer(x, source, mask)[0], layer.out(torch.cat(heads, -1)))


def test_text_is_pooled_over_its_real_words():
    torch.manual_seed(0)
    pool, words = TextPool(width=8), torch.randn(1, 3, 8)
    share = pool.score(words[0, :2]).softmax(0)
    assert close(pool(words, torch.tensor([[True, True, False]]))[0], pool.norm((share * words[0, :2]).sum(0)))


def test_asks_come_back_as_they_went():
    video, x = torch.tensor([2, 0, 2, 1, 2]), torch.randn(5, 3)
    asks = Asks.of(video, 4)  # nobody asks about the last
    assert asks.slot.tolist() == [0, 0, 1, 0, 2]
    assert asks.by_video(x).shape == (4, 3, 3)
    assert torch.equal(asks.by_query(asks.by_video(x)), x)


def test_every_place_of_a_frame_has_waves_of_its_own():
    waves = place_waves(7, 7)
    assert torch.cdist(waves, waves).add(torch.eye(49) * 9).min() > 0.1
    assert waves.abs().max() < 2


def test_anchors_are_the_middles_of_what_they_cover():
    centres, strides = anchors(5, (1, 2, 4), torch.device("cpu"))
    assert centres.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 1, 3, 5, 2, 6]
    assert strides.tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 4, 4]


# --- properties of the whole -------------------------------------------------------------------------------------

CLIPS, ASKED = [1, 13, 6, 9, 2], [(0, 3), (1, 1), (3, 7), (2, 2), (1, 4), (4, 5)]


@every_variant
def test_every_variant_builds_runs_and_learns_in_all_its_parts(overrides):
    model = small_model(*overrides).train()
    outputs = model(**random_inputs(CLIPS, ASKED))
    assert outputs.saliency.shape == (6, 13)
    ways = 1 + (model.spatial.what is not None)
    assert outputs.match.own.shape == (ways, 6, 13) and outputs.match.rivals.shape == (ways, 6, 5, 7)
    assert outputs.spans.shape == (*outputs.foreground.shape, 2)
    assert all(value.isfinite().all() for value in vars(outputs).values() if isinstance(value, Tensor))
    assert (outputs.spans[..., 0] <= outputs.centres).all() and (outputs.centres <= outputs.spans[..., 1]).all()
    said = (outputs.foreground, outputs.spans, outputs.saliency, *vars(outputs.match).values())
    sum(x.square().mean() for x in said).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []


@every_variant
@pytest.mark.parametrize("garbage", [0.0, 50.0])
@pytest.mark.promise(14)
def test_a_sentence_in_a_padded_batch_gets_what_it_gets_alone(overrides, garbage):
    model, inputs = small_model(*overrides), random_inputs(CLIPS, ASKED, garbage=garbage)
    together = run(model, inputs)
    for row, (video, _) in enumerate(ASKED):
        single = run(model, alone(inputs, row))
        real, clips = together.positions[row], CLIPS[video]
        assert single.positions.all()
        assert close(together.centres[real], single.centres) and close(together.strides[real], single.strides)
        for name in ("foreground", "spans"):
            assert close(getattr(together, name)[row, real], getattr(single, name)[0]), name
        assert close(together.saliency[row, :clips], single.saliency[0])
        assert close(together.match.own[:, row, :clips], single.match.own[:, 0])
        assert close(together.match.rivals[:, row, video, : -(-clips // RIVAL_STEP)], single.match.rivals[:, 0, 0])


def padded_further(inputs: dict[str, Tensor], *, clips: int, words: int, garbage: float) -> dict[str, Tensor]:
    """The same batch with so many more clips behind every video and words behind every sentence, all of them masked."""
    pad = nn.functional.pad
    return inputs | {
        "tokens": pad(inputs["tokens"], (0, 0, 0, 0, 0, clips), value=garbage),
        "frame_mask": pad(inputs["frame_mask"], (0, clips)),
        "words": pad(inputs["words"], (0, 0, 0, words), value=garbage),
        "word_mask": pad(inputs["word_mask"], (0, words)),
    }


def same_with_more_padding(model: nn.Module) -> None:
    """Whether a model says the same of a batch that is padded further."""
    inputs = random_inputs(CLIPS, ASKED)
    before = run(model, inputs)
    for clips, words in ((1, 0), (0, 3), (9, 5)):
        after = run(model, padded_further(inputs, clips=clips, words=words, garbage=50.0))
        for row, (video, _) in enumerate(ASKED):
            old, new, real = before.positions[row], after.positions[row], CLIPS[video]
            for name in ("foreground", "spans"):
                assert close(getattr(after, name)[row, new], getattr(before, name)[row, old]), name
            assert close(after.centres[new], before.centres[old])
            assert close(after.saliency[row, :real], before.saliency[row, :real])
            assert close(after.match.own[:, row, :real], before.match.own[:, row, :real])


@every_variant
def test_more_padding_in_time_and_words_changes_nothing(overrides):
    same_with_more_padding(small_model(*overrides))


def test_the_order_of_sentences_and_of_videos_does_not_matter():
    model, inputs = small_model(), random_inputs(CLIPS, ASKED)
    rows, videos = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([3, 0, 4, 1, 2])
    turned = {name: inputs[name][rows] for name in ("words", "word_mask", "sentence")}
    turned |= {name: inputs[name][videos] for name in ("tokens", "frame_mask")}
    turned["video"] = videos.argsort()[inputs["video"]][rows]
    before, after = run(model, inputs), run(model, turned)
    for name in ("foreground", "spans", "saliency", "positions"):
        assert close(getattr(before, name)[rows].float(), getattr(after, name).float()), name
    assert close(before.match.own[:, rows], after.match.own)
    assert close(before.match.rivals[:, rows][:, :, videos], after.match.rivals)


def test_two_sentences_see_the_same_video_differently_and_patches_matter():
    model, inputs = small_model(), random_inputs([8], [(0, 3), (0, 3)])
    first = run(model, inputs)
    assert not close(first.saliency[0], first.saliency[1])
    moved = inputs | {"tokens": torch.cat([inputs["tokens"][:, :, :1], inputs["tokens"][:, :, 1:].flip(2)], 2)}
    assert not close(run(model, moved).saliency, first.saliency)  # the same patches in other places


def test_the_cost_of_step_two_does_not_depend_on_the_number_of_patches():
    costs, shapes = [], []
    for side in (7, 16):
        model = SpatialEncoder(clip_width=C, width=D, patch_grid=(side, side), heads=2, steps=2, top_k=16, dropout=0.0)
        assert model.what is not None
        model.what.register_forward_hook(
            lambda _, given, found: shapes.append([x.shape for x in (*given, *vars(found).values())])
        )
        inputs = random_inputs([9, 4], [(0, 3), (1, 5)], patches=side * side)
        words, sentence = torch.randn(2, 5, D), torch.randn(2, D)
        with FlopCounterMode(display=False) as counter:
            model(inputs["tokens"], inputs["video"], sentence, words, inputs["word_mask"])
        costs.append(sum(counter.get_flop_counts()["SpatialEncoder.what"].values()))
    assert shapes[0] == shapes[1]
    assert costs[0] == costs[1] > 0


def test_the_cost_of_an_answer_grows_with_the_patches_in_step_one_alone_whatever_the_words():
    """Multiply-adds at the same top_k: after the short list is made, nothing knows how many patches there were."""
    grown = [[cost_of(side, words) - cost_of(7, words) for side in (12, 16)] for words in (3, 9)]
    assert grown[0] == grown[1]
    assert grown[0][1] * (144 - 49) == grown[0][0] * (256 - 49) > 0


def test_the_cost_of_the_contrast_stops_growing_at_a_hundred_patches():
    contrast = [cost_of(side, 3, matching=True) - cost_of(side, 3) for side in (7, 10, 16, 20)]
    assert 0 < contrast[0] < contrast[1] and max(contrast[2:]) <= contrast[1]


def cost_of(side: int, words: int, *, matching: bool = False) -> int:
    inputs = random_inputs([9, 4], [(0, words), (1, words), (0, words)], patches=side * side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small_model(grid=(side, side))(**inputs, matching=matching)
    return counter.get_total_flops()


# --- CLIP's joint space --------------------------------------------------------------------------------------------


EARLIER = {
    "joint_norm_eps": 0.3,
    "joint_logit_scale": 7.0,
}  # what a checkpoint holds, unlike what the model is built with


def checkpoint_of_an_earlier_version(model: nn.Module, folder) -> dict[str, Tensor]:
    """Weights in which the two numbers are buffers: as tensors under their own names."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in EARLIER}
    weights |= {name: torch.tensor(value) for name, value in EARLIER.items()}
    save_checkpoint(folder, "best", weights, {})
    return load_checkpoint(folder, "best")[0]


def similarity_of_an_earlier_version(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """What the frozen similarity was computed by when its numbers were buffers."""
    used, mask = inputs["tokens"][:, :, 0], inputs["frame_mask"][inputs["video"]]
    norm = [weights[f"joint_norm_{name}"] for name in ("weight", "bias")]
    used = nn.functional.layer_norm(used, used.shape[-1:], *norm, float(weights["joint_norm_eps"]))
    space = nn.functional.normalize(used @ weights["joint_projection"], dim=-1)
    like = torch.einsum("bte,be->bt", space[inputs["video"]], inputs["sentence"])
    mean = (like * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    return (like - mean) * weights["joint_logit_scale"]


@pytest.mark.parametrize("kind", ["costl", "cls", "adapter"])
def test_the_numbers_of_the_joint_space_are_plain_values_not_buffers(kind):
    config, joint = load_config(SMALL, overrides=[f"model.kind={kind}"]), joint_space(torch.Generator())
    model = build_any(config, clip_width=C, word_width=W, patch_grid=(2, 3), joint=joint)
    assert type(model.joint_norm_eps) is type(model.joint_logit_scale) is float and model.joint_normed is True
    buffers = {name for name, _ in model.named_buffers() if name.startswith("joint_")}
    assert buffers == {"joint_norm_weight", "joint_norm_bias", "joint_projection"}
    assert {name for name in model.state_dict() if name.startswith("joint_")} == buffers | EARLIER.keys()


def test_a_checkpoint_of_an_earlier_version_gives_the_same_to_the_last_bit(tmp_path):
    model, inputs = small_model(), random_inputs(CLIPS, ASKED)
    other = copy.deepcopy(model)
    weights = checkpoint_of_an_earlier_version(model, tmp_path)
    fit_weights(model, weights, of="a run")
    names = ("tokens", "frame_mask", "video", "sentence")
    found = model._clip_similarity(**{name: inputs[name] for name in names})
    assert torch.equal(found, similarity_of_an_earlier_version(weights, inputs))
    assert found.std() > 0.1
    saved = model.state_dict()
    assert saved.keys() == weights.keys()
    assert all(
        torch.equal(saved[name], tensor) and saved[name].dtype == tensor.dtype for name, tensor in weights.items()
    )
    assert other.joint_logit_scale == 10.0  # a copy keeps numbers of its own
    fit_weights(other, weights, of="a run")
    assert torch.equal(run(other, inputs).saliency, run(model, inputs).saliency)


def test_a_checkpoint_without_the_numbers_of_the_joint_space_is_refused():
    model = small_model()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "joint_norm_eps"}
    with pytest.raises(CacheError, match="no joint_norm_eps"):
        fit_weights(model, weights, of="a run")
    with pytest.raises(RuntimeError, match=r"Missing key.*joint_norm_eps"):
        model.load_state_dict(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_vector_has_no_direction_in_any_precision(dtype):
    found = unit_length(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


# --- one batch by heart ------------------------------------------------------------------------------------------


class Sprites:
    """Three videos of twelve clips; while a moment lasts, one of the nine patches shows what its sentence names."""

    fps, patch_grid = 0.5, (3, 3)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.things = rng.normal(size=(6, C)).astype(np.float32) * 2
        self.names = rng.normal(size=(6, 3, W)).astype(np.float16)
        self.noise = rng.normal(size=(3, 12, 10, C)).astype(np.float16) * np.float16(0.5)
        self.joint = Joint(
            np.ones(C, np.float32), np.zeros(C, np.float32), 1e-5, rng.normal(size=(C, E)).astype(np.float32), 10.0
        )
        spans = [(0, 6), (12, 20), (4, 8), (10, 24), (0, 14), (18, 22)]
        self.queries = [Query(i, f"thing {i}", f"v{i // 2}", 24.0, (span,)) for i, span in enumerate(spans)]

    def grid(self, video_id: str) -> Grid:
        return Grid(self.fps, 24.0)

    def tokens(self, video_id: str, *, clips=slice(None), patches: bool = True) -> np.ndarray:
        tokens = self.noise[int(video_id[1:])].copy()
        for query in (q for q in self.queries if q.vid == video_id):
            start, end = (int(second * self.fps) for second in query.windows[0])
            tokens[start:end, 1 + int(query.qid)] += self.things[int(query.qid)].astype(np.float16)
        return tokens[clips, : None if patches else 1]

    def words(self, query: str) -> Words:
        number = int(query.split()[1])
        sentence = self.things[number] @ self.joint.projection
        return Words(self.names[number], (sentence / np.linalg.norm(sentence)).astype(np.float32))


def score(model: CoSTL, batch: Batch, config: Config) -> dict[str, float]:
    outputs = run(model, batch.model_inputs())
    right = batch.right
    predictions = to_predictions(
        batch.queries,
        scores=outputs.foreground.sigmoid()[right],
        spans=outputs.spans[right],
        positions=outputs.positions[right],
        saliency=outputs.saliency[right],
        clips=batch.clips,
        clip_s=2.0,
        moments=config.predict.moments,
        nms_sigma=config.predict.nms_sigma,
        min_score=config.predict.min_score,
    )
    return compute_metrics(predictions, batch.queries)["brief"]


def learn_by_heart(model: nn.Module, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """The loss before and after 150 steps on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first, parts = total_loss(model(**batch.model_inputs()), batch, config.loss)
    assert {*parts, "quality"} == {field.name for field in fields(config.loss)}
    loss = first
    for _ in range(150):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss, _ = total_loss(model(**batch.model_inputs()), batch, config.loss)
    return first, loss


ALL_WRONG = [(0, 2), (3, 5), (4, 0)]


def whole_loss(model: nn.Module, batch: Batch, config: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the gradient of every weight."""
    model.zero_grad()
    total, parts = total_loss(model(**batch.model_inputs()), batch, config.loss)
    assert {*parts, "quality"} == {field.name for field in fields(config.loss)}
    total.backward()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def longer(batch: Batch) -> Batch:
    """The same batch with five more clips, three more words and two more moments for everyone, none of them real."""
    pad = nn.functional.pad
    return replace(
        batch,
        tokens=pad(batch.tokens, (0, 0, 0, 0, 0, 5), value=9.0),
        frame_mask=pad(batch.frame_mask, (0, 5)),
        words=pad(batch.words, (0, 0, 0, 3), value=9.0),
        word_mask=pad(batch.word_mask, (0, 3)),
        moments=pad(batch.moments, (0, 0, 0, 2), value=3.0),
        moment_mask=pad(batch.moment_mask, (0, 2)),
        ratings=pad(batch.ratings, (0, 5)),
        relevant=pad(batch.relevant, (0, 5)),
    )


@pytest.mark.parametrize("kind", ["costl", "cls", "adapter"])
@pytest.mark.parametrize("how", ["turned", "padded"])
def test_neither_the_order_of_a_batch_nor_its_padding_changes_what_is_learned_from_it(kind, how):
    torch.manual_seed(0)
    world, config = Sprites(), load_config(SMALL, overrides=[f"model.kind={kind}"])
    joint = {field.name: torch.as_tensor(getattr(world.joint, field.name)) for field in fields(world.joint)}
    model = build_any(config, clip_width=C, word_width=W, patch_grid=world.patch_grid, joint=joint)
    batch = collate(world.queries, world, patches=True, wrong=ALL_WRONG)
    other = longer(batch)
    if how == "turned":  # sentences, and with them videos, the other way round
        count = len(world.queries) - 1
        pairs = [(count - i, count - j) for i, j in reversed(ALL_WRONG)]
        other = collate(world.queries[::-1], world, patches=True, wrong=pairs)
    (value, gradients), (found, others) = (whole_loss(model, b, config) for b in (batch, other))
    assert found.item() == pytest.approx(value.item(), rel=1e-5)
    largest = max(g.abs().max() for g in gradients.values())
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_whole_loss_and_its_gradient_are_finite_at_the_ends_of_half_precision(dtype):
    world, config, draw = Sprites(), load_config(SMALL), torch.Generator().manual_seed(0)
    batch = collate(world.queries, world, patches=True, wrong=ALL_WRONG)
    outputs = run(small_model(grid=(3, 3)), batch.model_inputs())
    ends = torch.tensor([65504.0, -65504.0, 1e4, -1e4, 6e-8, 0.0])
    names = ("foreground", "saliency")
    given = {name: getattr(outputs, name) for name in names} | vars(outputs.match)
    said = {
        name: ends[torch.randint(6, value.shape, generator=draw)].to(dtype).requires_grad_()
        for name, value in given.items()
    }
    reach = torch.tensor([-65504.0, 65504.0]).expand(*outputs.spans.shape)
    said["spans"] = torch.where(
        torch.rand(outputs.spans.shape[:2], generator=draw)[..., None] < 0.5, reach, outputs.spans
    )
    said["spans"] = said["spans"].to(dtype).requires_grad_()
    match = Match(said["own"], said["rivals"])
    wild = replace(outputs, spans=said["spans"], match=match, **{name: said[name] for name in names})
    total, parts = total_loss(wild, batch, config.loss)
    assert total.isfinite() and all(part.isfinite() and part >= 0 for part in parts.values())
    total.backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in said.values())


def test_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    world, config = Sprites(), load_config(SMALL, overrides=["model.width=32"])
    joint = {field.name: torch.as_tensor(getattr(world.joint, field.name)) for field in fields(world.joint)}
    model = build_model(config, clip_width=C, word_width=W, patch_grid=world.patch_grid, joint=joint)
    batch = collate(world.queries, world, patches=True, wrong=ALL_WRONG)
    first, loss = learn_by_heart(model, batch, config)
    assert loss < 0.2 * first
    assert score(model.eval(), batch, config)["MR-full-R1@0.7"] == 100
