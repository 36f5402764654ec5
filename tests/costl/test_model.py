"""The model: its two spatial steps against plain loops, its indifference to padding, and one batch learned by heart."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from costl.annotations import Query
from costl.config import Config, load_config
from costl.dataset import Batch, collate
from costl.metrics import compute_metrics
from costl.model.costl import CoSTL, Outputs, build_model
from costl.model.heads import anchors
from costl.model.spatial import Asks, SpatialEncoder, WhatStep, WhereStep, place_waves
from costl.model.temporal import Attention, TextPool
from costl.objective import total_loss
from costl.predict import to_predictions
from pipeline.features import Joint, Words
from pipeline.grid import Grid

C, W, E, D = 12, 10, 8, 16
SMALL = {"model": {"width": D, "heads": 2, "dropout": 0.0, "input_dropout": 0.0}, "spatial": {"top_k": 4}}
VARIANTS = [
    *([f"spatial.steps={n}"] for n in (0, 1, 2)),
    ["spatial.clip_prior=false"],
    ["temporal.strides=[1]"],
    ["temporal.top_down=false"],
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


# --- layers against loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_prior", [True, False])
def test_step_one_is_a_loop_over_sentences_and_frames(with_prior):
    torch.manual_seed(0)
    step, video = WhereStep(width=D, top_k=3), torch.tensor([1, 0, 1])
    patches, sentence = torch.randn(2, 4, 7, D), torch.randn(3, D)
    prior = torch.randn(3, 4, 7)
    found = step(patches, sentence, Asks.of(video), prior if with_prior else None)
    for b in range(3):
        for t in range(4):
            here = patches[video[b], t]
            learned = step.key(here) @ step.query(sentence[b]) / D**0.5
            share = (learned + step.prior_weight * prior[b, t] if with_prior else learned).softmax(0)
            best = sorted(range(7), key=lambda p: -share[p])[:3]
            assert close(found.share[b, t], share)
            assert close(found.summary[b, t], (share[:, None] * here).sum(0))
            assert found.chosen[b, t].tolist() == best
            assert close(found.short_list[b, t], here[best])
            assert close(found.log_share[b, t], share[best].log())
            assert close(found.match[b, video[b], t], learned.exp().sum().log())


def test_step_two_is_a_loop_over_heads_frames_and_words():
    torch.manual_seed(0)
    step = WhatStep(width=8, heads=2)
    nn.init.normal_(step.null_key)
    nn.init.normal_(step.match_weight)
    short_list, log_share = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5).log_softmax(-1)
    summary, words = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    real = [4, 2]
    word_mask = torch.arange(4) < torch.tensor(real)[:, None]
    found = step(short_list, log_share, summary, words, word_mask)
    for b in range(2):
        for t in range(3):
            brought = []
            for h, part in enumerate((slice(0, 4), slice(4, 8))):
                keys, values = step.key(short_list[b, t])[:, part], step.value(short_list[b, t])[:, part]
                over_words, weights = [], []
                for word in words[b, : real[b]]:
                    asked = (step.query(word) + step.shift(summary[b, t]))[part]
                    score = keys @ asked / 2 + log_share[b, t]
                    null = step.null_key[h] @ asked / 2 - np.log(8)
                    over_words.append(torch.cat([score, null[None]]).softmax(0))
                    assert close(found.by_word[b, h, t, len(over_words) - 1], over_words[-1])
                    weights.append(step.role(word)[h] + step.match_weight[h] * (score.exp().sum().log() - null))
                heard = torch.stack(weights).softmax(0)
                assert close(found.heard[b, h, t], nn.functional.pad(heard, (0, 4 - real[b])))
                expected = heard @ torch.stack(over_words)[:, :-1]
                assert close(found.attention[b, h, t], expected)
                brought.append(expected @ values)
            assert close(found.evidence[b, t], step.out(torch.cat(brought)))


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
    asks = Asks.of(video)
    assert asks.slot.tolist() == [0, 0, 1, 0, 2]
    assert asks.by_video(x).shape == (3, 3, 3)
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
    assert outputs.match.shape == (6, 5, 13)
    assert outputs.spans.shape == (*outputs.foreground.shape, 2)
    assert all(getattr(outputs, field.name).isfinite().all() for field in fields(outputs))
    assert (outputs.spans[..., 0] <= outputs.centres).all() and (outputs.centres <= outputs.spans[..., 1]).all()
    said = (outputs.foreground, outputs.quality, outputs.spans, outputs.saliency, outputs.match)
    sum(x.square().mean() for x in said).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == (["spatial.where.prior_weight"] if "spatial.clip_prior=false" in overrides else [])


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
        for name in ("foreground", "quality", "spans"):
            assert close(getattr(together, name)[row, real], getattr(single, name)[0]), name
        assert close(together.saliency[row, :clips], single.saliency[0])
        assert close(together.match[row, video, :clips], single.match[0, 0])


def test_the_order_of_sentences_and_of_videos_does_not_matter():
    model, inputs = small_model(), random_inputs(CLIPS, ASKED)
    rows, videos = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([3, 0, 4, 1, 2])
    turned = {name: inputs[name][rows] for name in ("words", "word_mask", "sentence")}
    turned |= {name: inputs[name][videos] for name in ("tokens", "frame_mask")}
    turned["video"] = videos.argsort()[inputs["video"]][rows]
    before, after = run(model, inputs), run(model, turned)
    for name in ("foreground", "quality", "spans", "saliency", "positions"):
        assert close(getattr(before, name)[rows].float(), getattr(after, name).float()), name
    assert close(before.match[rows][:, videos], after.match)


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
            model(inputs["tokens"], inputs["video"], sentence, words, inputs["word_mask"], None)
        costs.append(sum(counter.get_flop_counts()["SpatialEncoder.what"].values()))
    assert shapes[0] == shapes[1]
    assert costs[0] == costs[1] > 0


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
        scores=(outputs.foreground.sigmoid() * outputs.quality.sigmoid()).sqrt()[right],
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
    assert set(parts) == {field.name for field in fields(config.loss)}
    loss = first
    for _ in range(150):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss, _ = total_loss(model(**batch.model_inputs()), batch, config.loss)
    return first, loss


def test_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    world, config = Sprites(), load_config(SMALL, overrides=["model.width=32"])
    joint = {field.name: torch.as_tensor(getattr(world.joint, field.name)) for field in fields(world.joint)}
    model = build_model(config, clip_width=C, word_width=W, patch_grid=world.patch_grid, joint=joint)
    batch = collate(world.queries, world, patches=True, wrong=[(0, 2), (3, 5), (4, 0)])
    first, loss = learn_by_heart(model, batch, config)
    assert loss < 0.2 * first
    assert score(model.eval(), batch, config)["MR-full-R1@0.7"] == 100
