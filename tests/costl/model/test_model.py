"""The model: layers compared with plain loops, padding and order change nothing, and one batch can be overfitted."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_model import (
    CLIPS,
    NEGATIVE_PAIRS,
    QUERIES,
    SMALL,
    VARIANTS,
    C,
    D,
    Sprites,
    batch_of_one,
    check_more_padding,
    close,
    longer,
    overfit,
    random_inputs,
    run,
    small_model,
    untrained,
    with_contrast,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from costl.config import Config, load_config
from costl.data.batch import Batch, collate
from costl.metrics.compute import compute_metrics
from costl.model.clip_similarity import clip_similarity
from costl.model.contrast import NEGATIVE_CLIP_STEP, BatchTexts, Similarities, unit_length
from costl.model.costl import CoSTL
from costl.model.heads import anchors
from costl.model.inputs import ModelInputs
from costl.model.spatial import FineAttention, SpatialEncoder, coarse_attention, patch_position_encoding
from costl.model.temporal import Attention, TextPool
from costl.model.tokens import GatheredPatches, NormalisedTokens, QueryGroups, inner_products, own_video_scores
from costl.predict.postprocess import ModelOutput, to_predictions
from costl.training.objective import total_loss

every_variant = pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)


def already_normalised(tokens: Tensor) -> NormalisedTokens:
    """These tokens, as if they were normalised already."""
    return NormalisedTokens(
        tokens, torch.zeros(tokens.shape[:3]), torch.ones(tokens.shape[:3]), torch.ones(len(tokens), tokens.shape[3])
    )


# --- layers against loops ----------------------------------------------------------------------------------------


def test_coarse_attention_equals_a_loop_over_queries_and_frames():
    torch.manual_seed(0)
    video = torch.tensor([1, 0, 1])
    tokens = torch.randn(2, 4, 1 + 7, C)
    scores = torch.randn(3, 4, 7)
    output = coarse_attention(already_normalised(tokens), QueryGroups.from_video(video, 2, 2), scores, top_k=3)
    for b in range(3):
        for t in range(4):
            patches = tokens[video[b], t, 1:]
            attention = scores[b, t].softmax(0)
            best = sorted(range(7), key=lambda p: -attention[p])[:3]
            assert close(output.attention[b, t], attention)
            assert close(output.pooled[b, t], (attention[:, None] * patches).sum(0))
            assert output.short_list_index[b, t].tolist() == best
            assert close(output.short_list.pieces[b][0, t], patches[best])


def test_fine_attention_equals_a_loop_over_heads_frames_and_words():
    torch.manual_seed(0)
    fine = FineAttention(encoder_width=C, width=8, heads=2)
    short_list, scores, words = torch.randn(2, 3, 5, C), torch.randn(2, 3, 4, 5), torch.randn(2, 4, 8)
    word_counts = [4, 2]
    word_mask = torch.arange(4) < torch.tensor(word_counts)[:, None]
    output = fine(GatheredPatches((short_list,)), scores, words, word_mask)
    for b in range(2):
        positions = [number / (word_counts[b] - 1) - 0.5 for number in range(word_counts[b])]
        logits = [
            fine.head_logits(word) + fine.order_bias * position
            for word, position in zip(words[b], positions, strict=False)
        ]
        word_weights = torch.stack(logits).softmax(0).T
        assert close(output.word_weights[b], nn.functional.pad(word_weights, (0, 4 - word_counts[b])))
        for t in range(3):
            word_attention = []
            for number, word in enumerate(words[b, : word_counts[b]]):
                null = fine.null_logit(word) + np.log(2)
                word_attention.append(torch.cat([scores[b, t, number], null]).softmax(0))
                assert close(output.word_attention[b, t, number], word_attention[-1])
            evidence = []
            for h in range(2):
                head_attention = word_weights[h] @ torch.stack(word_attention)[:, :-1]
                assert close(output.head_attention[b, h, t], head_attention)
                evidence.append(head_attention @ short_list[b, t] @ fine.value[h])
            assert close(output.evidence[b, t], fine.out(torch.cat(evidence)))


def test_untrained_heads_weight_words_from_the_first_to_the_last():
    """With equal words, the first head has most weight on the first word, the last head on the last word."""
    fine = FineAttention(encoder_width=C, width=8, heads=4)
    words, scores, word_mask = torch.zeros(1, 5, 8), torch.zeros(1, 1, 5, 3), torch.tensor([[True] * 4 + [False]])
    word_weights = fine(GatheredPatches((torch.zeros(1, 1, 3, C),)), scores, words, word_mask).word_weights[0]
    assert word_weights[0].argmax() == 0 and word_weights[-1].argmax() == 3
    mean_position = word_weights[:, :4] @ torch.arange(4.0)
    assert (mean_position.diff() > 0).all()


def test_similarities_equal_a_soft_maximum_over_patches_for_each_text():
    torch.manual_seed(0)
    sizes = {"encoder_width": C, "width": D, "patch_grid": (2, 3), "heads": 2}
    encoder = SpatialEncoder(**sizes, steps=2, top_k=4, dropout=0.0).eval()
    tokens, video = torch.randn(2, 5, 7, C), torch.tensor([1, 0, 1])
    sentence, words = torch.randn(3, D), torch.randn(3, 3, D)
    word_mask = torch.tensor([[True] * 3, [True, False, False], [True, True, False]])
    inputs = ModelInputs(tokens, torch.zeros(2, 5, D), torch.ones(2, 5, dtype=torch.bool), video, words, word_mask, sentence)
    similarities = encoder(inputs, sentence, words, BatchTexts.of_inputs(inputs)).similarities
    patches = nn.functional.layer_norm(tokens, (C,))[:, :, 1:]
    for b in range(3):
        texts = [encoder.sentence_query(sentence[b]), *encoder.word_query(words[b, word_mask[b]])]
        texts = [encoder.to_encoder_space(text) for text in texts]
        for v in range(2):
            for t in range(5):
                of_sentence, *of_words = ((patches[v, t] @ text).exp().sum().log() for text in texts)
                expected = torch.stack([of_sentence, sum(of_words) / len(of_words)])
                if v == video[b]:
                    assert close(similarities.positives[:, b, t], expected)
                if t % NEGATIVE_CLIP_STEP == 0:
                    assert close(similarities.negatives[:, b, v, t // NEGATIVE_CLIP_STEP], expected)


def test_texts_are_scored_with_the_tokens_of_their_own_video():
    torch.manual_seed(0)
    texts, tokens, video = torch.randn(4, 2, C), torch.randn(3, 5, 7, C), torch.tensor([2, 0, 2, 1])
    scores = own_video_scores(texts, already_normalised(tokens), QueryGroups.from_video(video, 3, 2))
    assert close(scores, torch.einsum("bxc,btsc->bxts", texts, tokens[video]))


@given(st.floats(-10, 10), st.floats(0.01, 100), st.integers(0, 2**31))
def test_normalised_tokens_give_the_results_of_a_normalised_copy(mean, spread, seed):
    """For any mean and spread of the tokens, with and without dropped channels."""
    generator = torch.Generator().manual_seed(seed)
    raw = spread * (mean + torch.randn(2, 3, 5, 64, generator=generator))
    raw[0, 1] = 0.0  # padding
    channel_mask = (torch.rand(2, 64, generator=generator) > 0.3) / 0.7
    tokens = NormalisedTokens.from_raw(raw, channel_mask)
    normalised = nn.functional.layer_norm(raw, (64,)) * channel_mask[:, None, None]
    texts = torch.randn(2, 4, 64, generator=generator) / 8
    weights = torch.rand(2, 4, 3, 5, generator=generator).softmax(-1)
    near = partial(torch.allclose, rtol=1e-3, atol=1e-2)
    assert near(tokens.frame_tokens(), normalised[:, :, 0])
    assert near(tokens.scores(texts), torch.einsum("vxc,vtsc->vxts", texts, normalised))
    assert near(tokens.weighted_sum(weights), torch.einsum("vxts,vtsc->vxtc", weights, normalised))
    assert near(tokens.patches(slice(1, 2), slice(0, None, 2), 3), normalised[1:, ::2, 1::3])
    patch_index, video = torch.randint(4, (3, 3, 2), generator=generator), torch.tensor([1, 0, 1])
    expected = torch.empty(3, 3, 2, 64)
    for b, v in enumerate(video):
        for t in range(3):
            expected[b, t] = normalised[v, t, 1 + patch_index[b, t]]
    assert near(torch.cat(tokens.gather_patches(video, patch_index).pieces), expected)


@pytest.mark.parametrize("videos", [1, 3])
@pytest.mark.parametrize("clips", [0, 1, 20])
def test_inner_products_and_their_gradient_equal_those_of_einsum(videos, clips):
    """With one video, a convolution computes them, from 16 clips on with oneDNN."""
    torch.manual_seed(0)
    patches, texts, weights = torch.randn(videos, clips, 4, C), torch.randn(videos, 5, C), torch.randn(videos, clips, 4, 5)
    results = []
    for products in (inner_products, partial(torch.einsum, "vtpc,vxc->vtpx")):
        texts.grad = None
        result = products(patches, texts.requires_grad_())
        (result * weights).sum().backward()
        results.append((result, texts.grad))
    assert all(close(a, b) for a, b in zip(*results, strict=True))


def test_pieces_of_several_queries_give_the_results_of_one_piece():
    torch.manual_seed(0)
    patches, texts, weights = torch.randn(5, 3, 4, C), torch.randn(5, 2, C), torch.randn(5, 6, 3, 4)
    for sizes in ([5], [2, 3], [1] * 5):
        gathered = GatheredPatches(patches.split(sizes))
        assert close(gathered.scores(texts), torch.einsum("btkc,bxc->btkx", patches, texts))
        assert close(gathered.weighted_sum(weights), torch.einsum("bxtk,btkc->btxc", weights, patches))


def test_attention_is_a_softmax_of_scaled_products_over_real_rows():
    torch.manual_seed(0)
    layer, x, source = Attention(width=8, heads=2), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    key, value = layer.key_value(source[0, :4]).chunk(2, -1)
    query = layer.query(x[0])
    heads = [(query[:, p] @ key[:, p].T / 2).softmax(-1) @ value[:, p] for p in (slice(0, 4), slice(4, 8))]
    mask = torch.tensor([[True] * 4 + [False]])
    assert close(layer(x, source, mask)[0], layer.out(torch.cat(heads, -1)))


def test_text_pool_is_a_softmax_over_real_words():
    torch.manual_seed(0)
    pool, words = TextPool(width=8), torch.randn(1, 3, 8)
    share = pool.score(words[0, :2]).softmax(0)
    assert close(pool(words, torch.tensor([[True, True, False]]))[0], pool.norm((share * words[0, :2]).sum(0)))


def test_unpack_is_the_inverse_of_pack():
    video, x = torch.tensor([2, 0, 2, 1, 2]), torch.randn(5, 3)
    groups = QueryGroups.from_video(video, 4, 3)  # no query about the last video
    assert groups.slot.tolist() == [0, 0, 1, 0, 2]
    assert groups.pack(x).shape == (4, 3, 3)
    assert torch.equal(groups.unpack(groups.pack(x)), x)


def test_every_patch_has_a_position_encoding_of_its_own():
    encoding = patch_position_encoding(7, 7)
    assert torch.cdist(encoding, encoding).add(torch.eye(49) * 9).min() > 0.1
    assert encoding.abs().max() < 2


def test_anchors_are_the_centres_of_the_positions():
    centres, strides = anchors(5, (1, 2, 4), torch.device("cpu"))
    assert centres.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 1, 3, 5, 2, 6]
    assert strides.tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 4, 4]


# --- properties of the whole -------------------------------------------------------------------------------------



@every_variant
def test_every_variant_runs_and_trains_every_parameter(overrides):
    model = small_model(*overrides).train()
    outputs = with_contrast(model, random_inputs(CLIPS, QUERIES))
    assert outputs.saliency.shape == (6, 13)
    heads = 1 + (model.spatial.fine is not None)
    assert outputs.similarities.positives.shape == (heads, 6, 13)
    assert outputs.similarities.negatives.shape == (heads, 6, 5, 7)
    assert outputs.spans.shape == (*outputs.foreground.shape, 2)
    assert all(value.isfinite().all() for value in vars(outputs).values() if isinstance(value, Tensor))
    assert (outputs.spans[..., 0] <= outputs.centres).all() and (outputs.centres <= outputs.spans[..., 1]).all()
    values = (outputs.foreground, outputs.spans, outputs.saliency, *vars(outputs.similarities).values())
    sum(value.square().mean() for value in values).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@every_variant
@pytest.mark.parametrize("garbage", [0.0, 50.0])
@pytest.mark.promise(14)
def test_a_query_in_a_padded_batch_gets_the_outputs_of_a_batch_of_one(overrides, garbage):
    model, inputs = small_model(*overrides), random_inputs(CLIPS, QUERIES, garbage=garbage)
    batched = run(model, inputs)
    for row, (video, _) in enumerate(QUERIES):
        single = run(model, batch_of_one(inputs, row))
        real, clips = batched.position_mask[row], CLIPS[video]
        assert single.position_mask.all()
        assert close(batched.centres[real], single.centres) and close(batched.strides[real], single.strides)
        for name in ("foreground", "spans"):
            assert close(getattr(batched, name)[row, real], getattr(single, name)[0]), name
        assert close(batched.saliency[row, :clips], single.saliency[0])
        assert close(batched.similarities.positives[:, row, :clips], single.similarities.positives[:, 0])
        assert close(
            batched.similarities.negatives[:, row, video, : -(-clips // NEGATIVE_CLIP_STEP)],
            single.similarities.negatives[:, 0, 0],
        )


@every_variant
def test_more_padded_clips_and_words_change_no_output(overrides):
    check_more_padding(small_model(*overrides))


def test_the_order_of_queries_and_videos_does_not_matter():
    model, inputs = small_model(), random_inputs(CLIPS, QUERIES)
    rows, videos = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([3, 0, 4, 1, 2])
    changes = {name: getattr(inputs, name)[rows] for name in ("words", "word_mask", "sentence")}
    changes |= {name: getattr(inputs, name)[videos] for name in ("tokens", "joint", "frame_mask")}
    permuted = replace(inputs, video=videos.argsort()[inputs.video][rows], **changes)
    before, after = run(model, inputs), run(model, permuted)
    for name in ("foreground", "spans", "saliency", "position_mask"):
        assert close(getattr(before, name)[rows].float(), getattr(after, name).float()), name
    assert close(before.similarities.positives[:, rows], after.similarities.positives)
    assert close(before.similarities.negatives[:, rows][:, :, videos], after.similarities.negatives)


def test_all_videos_at_once_as_on_a_gpu_give_the_same_outputs(monkeypatch):
    model, inputs = small_model(), random_inputs(CLIPS, QUERIES)
    one_by_one = run(model, inputs)
    monkeypatch.setattr("costl.model.tokens._parts", lambda count, device: [slice(0, count)])
    at_once = run(model, inputs)
    for name in ("foreground", "spans", "saliency"):
        assert close(getattr(at_once, name), getattr(one_by_one, name)), name
    assert close(at_once.similarities.positives, one_by_one.similarities.positives)
    assert close(at_once.similarities.negatives, one_by_one.similarities.negatives)


def test_outputs_depend_on_the_sentence_and_on_patch_positions():
    model, inputs = small_model(), random_inputs([8], [(0, 3), (0, 3)])
    first = run(model, inputs)
    assert not close(first.saliency[0], first.saliency[1])
    swapped = replace(inputs, tokens=torch.cat([inputs.tokens[:, :, :1], inputs.tokens[:, :, 1:].flip(2)], 2))
    assert not close(run(model, swapped).saliency, first.saliency)  # the same patches at other positions


def test_the_cost_of_the_fine_step_does_not_depend_on_the_patches():
    costs, shapes = [], []
    for side in (7, 16):
        model = SpatialEncoder(
            encoder_width=C, width=D, patch_grid=(side, side), heads=2, steps=2, top_k=16, dropout=0.0
        )
        assert model.fine is not None
        model.fine.register_forward_hook(
            lambda _, inputs, output: shapes.append([x.shape for x in (*inputs[0].pieces, *inputs[1:], *vars(output).values())])
        )
        inputs = random_inputs([9, 4], [(0, 3), (1, 5)], patches=side * side)
        words, sentence = torch.randn(2, 5, D), torch.randn(2, D)
        with FlopCounterMode(display=False) as counter:
            model(inputs, sentence, words, BatchTexts.of_inputs(inputs))
        costs.append(sum(counter.get_flop_counts()["SpatialEncoder.fine"].values()))
    assert shapes[0] == shapes[1]
    assert costs[0] == costs[1] > 0


def test_only_the_coarse_step_costs_more_with_more_patches():
    """Multiply-adds at the same top_k: no layer after the short list depends on the number of patches."""
    extra = [[cost_of(side, words) - cost_of(7, words) for side in (12, 16)] for words in (3, 9)]
    assert extra[0] == extra[1]
    assert extra[0][1] * (144 - 49) == extra[0][0] * (256 - 49) > 0


def test_the_cost_of_the_contrast_stops_growing_at_100_patches():
    costs = [cost_of(side, 3, contrast=True) - cost_of(side, 3) for side in (7, 10, 16, 20)]
    assert 0 < costs[0] < costs[1] and max(costs[2:]) <= costs[1]


def cost_of(side: int, words: int, *, contrast: bool = False) -> int:
    inputs = random_inputs([9, 4], [(0, words), (1, words), (0, words)], patches=side * side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small_model(grid=(side, side))(inputs, contrast=BatchTexts.of_inputs(inputs) if contrast else None)
    return counter.get_total_flops()


# --- CLIP's joint space --------------------------------------------------------------------------------------------


def test_the_similarity_is_a_scaled_cosine_minus_its_mean():
    inputs = random_inputs(CLIPS, QUERIES)
    similarity = clip_similarity(inputs, torch.tensor(7.0)).double()
    for row, (video, _) in enumerate(QUERIES):
        frames, sentence = inputs.joint[video, : CLIPS[video]].double(), inputs.sentence[row].double()
        cosine = torch.stack([frame @ sentence / frame.norm() / sentence.norm() for frame in frames])
        torch.testing.assert_close(similarity[row, : CLIPS[video]], 7 * (cosine - cosine.mean()), rtol=1e-5, atol=1e-5)
    assert similarity.std() > 0.1


def test_frames_without_a_joint_vector_are_all_equally_similar():
    inputs = random_inputs(CLIPS, QUERIES)
    assert not clip_similarity(replace(inputs, joint=torch.zeros_like(inputs.joint)), torch.tensor(7.0)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_vector_stays_zero_in_any_precision(dtype):
    directions = unit_length(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype))
    torch.testing.assert_close(directions, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


# --- one batch ------------------------------------------------------------------------------------------


def score(model: CoSTL, batch: Batch, config: Config) -> dict[str, float]:
    outputs = run(model, batch.inputs)
    positive = slice(len(batch.queries))
    output = ModelOutput(
        scores=outputs.foreground.sigmoid()[positive],
        spans=outputs.spans[positive],
        position_mask=outputs.position_mask[positive],
        centres=outputs.centres,
        saliency=outputs.saliency[positive],
    )
    clips = batch.frame_mask.sum(1)[batch.video[positive]].tolist()
    predictions = to_predictions(batch.queries, output, config.predict, clips=clips, clip_s=2.0)
    return compute_metrics(predictions, batch.queries)["brief"]


def total_and_gradients(model: nn.Module, batch: Batch, config: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the gradient of every weight."""
    model.zero_grad()
    total, parts = total_loss(with_contrast(model, batch.inputs), batch, config.loss)
    assert {*parts} == {field.name for field in fields(config.loss)}
    total.backward()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["costl", "cls", "adapter"])
@pytest.mark.parametrize("change", ["reversed", "padded"])
def test_order_and_padding_of_a_batch_change_neither_loss_nor_gradient(kind, change):
    torch.manual_seed(0)
    world, config = Sprites(), load_config(SMALL, overrides=[f"model.kind={kind}"])
    model = untrained(config, world.patch_grid)
    batch = collate(world.queries, world, patches=True, negative_pairs=NEGATIVE_PAIRS)
    other = longer(batch)
    if change == "reversed":  # queries in reverse order, and videos with them
        count = len(world.queries) - 1
        pairs = [(count - i, count - j) for i, j in reversed(NEGATIVE_PAIRS)]
        other = collate(world.queries[::-1], world, patches=True, negative_pairs=pairs)
    loss, gradients = total_and_gradients(model, batch, config)
    other_loss, others = total_and_gradients(model, other, config)
    assert other_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    largest = max(g.abs().max() for g in gradients.values())
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_total_loss_and_gradient_are_finite_at_half_precision_limits(dtype):
    world, config, generator = Sprites(), load_config(SMALL), torch.Generator().manual_seed(0)
    batch = collate(world.queries, world, patches=True, negative_pairs=NEGATIVE_PAIRS)
    outputs = run(small_model(grid=(3, 3)), batch.inputs)
    limits = torch.tensor([65504.0, -65504.0, 1e4, -1e4, 6e-8, 0.0])
    names = ("foreground", "saliency")
    values = {name: getattr(outputs, name) for name in names} | vars(outputs.similarities)
    extreme = {
        name: limits[torch.randint(6, value.shape, generator=generator)].to(dtype).requires_grad_()
        for name, value in values.items()
    }
    widest = torch.tensor([-65504.0, 65504.0]).expand(*outputs.spans.shape)
    extreme["spans"] = torch.where(
        torch.rand(outputs.spans.shape[:2], generator=generator)[..., None] < 0.5, widest, outputs.spans
    )
    extreme["spans"] = extreme["spans"].to(dtype).requires_grad_()
    similarities = Similarities(extreme["positives"], extreme["negatives"])
    extreme_outputs = replace(
        outputs, spans=extreme["spans"], similarities=similarities, **{name: extreme[name] for name in names}
    )
    total, parts = total_loss(extreme_outputs, batch, config.loss)
    assert total.isfinite() and all(part.isfinite() and part >= 0 for part in parts.values())
    total.backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in extreme.values())


def test_costl_overfits_one_batch():
    torch.manual_seed(0)
    world, config = Sprites(), load_config(SMALL, overrides=["model.width=32"])
    model = untrained(config, world.patch_grid)
    batch = collate(world.queries, world, patches=True, negative_pairs=NEGATIVE_PAIRS)
    first, loss = overfit(model, batch, config)
    assert loss < 0.2 * first
    assert score(model.eval(), batch, config)["MR-full-R1@0.7"] == 100
