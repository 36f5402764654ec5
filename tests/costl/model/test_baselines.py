"""The baselines: the tests of CoSTL for the parts that they share, and plain loops for their own parts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from small_model import (
    CLIPS,
    NEGATIVE_PAIRS,
    QUERIES,
    SMALL,
    C,
    Sprites,
    batch_of_one,
    check_more_padding,
    close,
    overfit,
    random_inputs,
    run,
    untrained,
    with_contrast,
)
from torch import Tensor

from costl.ask.trained_model import read_trained_model
from costl.config import load_config
from costl.data.batch import collate
from costl.evaluate import evaluate
from costl.model.baselines.adapter import AdapterModel, QueryPool
from costl.model.baselines.cls import ClsModel
from costl.model.build import Model, build_model
from costl.model.tokens import QueryGroups
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.predict.attention_maps import clip_attention_maps
from costl.predict.loaded_run import load_model
from costl.report.build import report
from costl.train import train
from costl.training.run_folder import read_run

BASELINES = ("cls", "adapter")
each = pytest.mark.parametrize("kind", BASELINES)


def baseline(kind: str, *overrides: str, perturbed: bool = True) -> Model:
    """A small baseline in evaluation mode; with `perturbed` no gate is at zero, so that every part changes the outputs."""
    torch.manual_seed(0)
    config = load_config(SMALL, overrides=[f"model.kind={kind}", *overrides])
    model = untrained(config).eval()
    with torch.no_grad():
        for parameter in model.parameters() if perturbed else ():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@each
def test_a_baseline_has_the_outputs_of_costl_and_trains_every_parameter(kind):
    model = baseline(kind, perturbed=False).train()
    outputs = with_contrast(model, random_inputs(CLIPS, QUERIES))
    positions = {"cls": 13, "adapter": 13 + 7 + 4 + 2}[kind]
    assert outputs.foreground.shape == outputs.position_mask.shape == (6, positions)
    assert outputs.spans.shape == (6, positions, 2) and outputs.centres.shape == (positions,)
    assert outputs.saliency.shape == (6, 13) and outputs.similarities.positives.shape == (1, 6, 13)
    assert all(value.isfinite().all() for value in vars(outputs).values() if isinstance(value, Tensor))
    assert (outputs.spans[..., 0] <= outputs.centres).all() and (outputs.centres <= outputs.spans[..., 1]).all()
    values = (outputs.foreground, outputs.spans, outputs.saliency, *vars(outputs.similarities).values())
    sum(value.square().mean() for value in values).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@each
@pytest.mark.parametrize("garbage", [0.0, 50.0])
def test_padding_changes_no_output_of_a_baseline(kind, garbage):
    model, inputs = baseline(kind), random_inputs(CLIPS, QUERIES, garbage=garbage)
    batched = run(model, inputs)
    for row, (video, _) in enumerate(QUERIES):
        single = run(model, batch_of_one(inputs, row))
        real, clips = batched.position_mask[row], CLIPS[video]
        assert single.position_mask.all() and close(batched.centres[real], single.centres)
        for name in ("foreground", "spans"):
            assert close(getattr(batched, name)[row, real], getattr(single, name)[0]), name
        assert close(batched.saliency[row, :clips], single.saliency[0])
        assert close(batched.similarities.positives[:, row, :clips], single.similarities.positives[:, 0])


@each
def test_more_padded_clips_and_words_change_no_output_of_a_baseline(kind):
    check_more_padding(baseline(kind))


@each
def test_the_order_of_queries_and_videos_does_not_matter_to_a_baseline(kind):
    model, inputs = baseline(kind), random_inputs(CLIPS, QUERIES)
    rows, videos = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([3, 0, 4, 1, 2])
    changes = {name: getattr(inputs, name)[rows] for name in ("words", "word_mask", "sentence")}
    changes |= {name: getattr(inputs, name)[videos] for name in ("tokens", "frame_mask")}
    permuted = replace(inputs, video=videos.argsort()[inputs.video][rows], **changes)
    before, after = run(model, inputs), run(model, permuted)
    for name in ("foreground", "spans", "saliency", "position_mask"):
        assert close(getattr(before, name)[rows].float(), getattr(after, name).float()), name
    assert close(before.similarities.positives[:, rows], after.similarities.positives)
    assert close(before.similarities.negatives[:, rows][:, :, videos], after.similarities.negatives)


@each
def test_only_the_adapter_reads_patches(kind):
    model, inputs = baseline(kind), random_inputs([8], [(0, 3)])
    noise = torch.randn(1, 8, 6, C, generator=torch.Generator().manual_seed(3))
    changed = replace(inputs, tokens=torch.cat([inputs.tokens[:, :, :1], noise], 2))
    assert close(run(model, changed).saliency, run(model, inputs).saliency) == (kind == "cls")


def test_query_pool_equals_a_loop_over_queries_frames_and_words():
    torch.manual_seed(0)
    pool, video = QueryPool(width=8), torch.tensor([1, 0, 1])
    tokens, words, real = torch.randn(2, 4, 5, 8), torch.randn(3, 6, 8), [6, 2, 3]
    pooled = pool(tokens, words, torch.arange(6) < torch.tensor(real)[:, None], QueryGroups.from_video(video, 2, 2))
    for b in range(3):
        for t in range(4):
            frame = tokens[video[b], t]
            gathered = []
            for word in words[b, : real[b]]:
                share = (pool.key(frame) @ pool.query(word) / 8**0.5).softmax(0)
                gathered.append(share @ pool.value(frame) + word)
            assert close(pooled[b, t], torch.stack(gathered).max(0).values)


def test_the_frame_token_baseline_has_about_as_many_parameters_as_costl():
    sizes = {"encoder_width": 768, "word_width": 1024, "patch_grid": (7, 7), "joint_width": 512, "logit_scale": 10.0}
    count = {
        kind: sum(p.numel() for p in build_model(load_config({"model": {"kind": kind}}), **sizes).parameters())
        for kind in ("costl", "cls")
    }
    assert 0.75 < count["cls"] / count["costl"] < 1.33


@each
def test_a_baseline_overfits_one_batch(kind):
    """Also without patches: frames differ by their noise, and a model can memorise the noise."""
    torch.manual_seed(0)
    world, config = Sprites(), load_config(SMALL, overrides=["model.width=32", f"model.kind={kind}"])
    model = untrained(config, world.patch_grid)
    batch = collate(world.queries, world, patches=config.patches, negative_pairs=NEGATIVE_PAIRS)
    first, loss = overfit(model, batch, config)
    assert loss < 0.3 * first


@each
def test_a_baseline_trains_evaluates_loads_and_reports_like_costl(world, tmp_path, kind):
    out = tmp_path / "run"
    train(world.cache, overrides=[f"model.kind={kind}", "train.epochs=4"], out=out, device="cpu")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["losses"]["iou"] < rows[0]["losses"]["iou"]
    run_, features = read_run(out), CacheReader(world.cache)
    model = load_model(run_, features, device=torch.device("cpu"))
    assert isinstance(model, ClsModel if kind == "cls" else AdapterModel)
    found = evaluate(out, device="cpu")
    assert found.metrics["brief"]["MR-full-mAP"] >= 0
    short = evaluate(out, device="cpu", out=tmp_path / "again")
    assert short.metrics == found.metrics
    taken = read_trained_model(out)
    assert type(taken.model()) is type(model)
    assert not model.has_attention_maps
    with pytest.raises(UsageError, match="has no attention maps"):
        clip_attention_maps(model, next(iter(_queries(features))), [0], features)
    assert report(out, device="cpu").path.is_file()


@each
def test_a_baseline_predicts_long_videos_in_windows(world, tmp_path, kind):
    settings = [f"model.kind={kind}", "train.epochs=1", "predict.window_clips=8"]
    train(world.cache, overrides=settings, out=tmp_path / "run", device="cpu")
    rows = [
        json.loads(line)
        for line in evaluate(tmp_path / "run", device="cpu")
        .folder.joinpath("predictions.jsonl")
        .read_text()
        .splitlines()
    ]
    assert rows and all(len(row["pred_saliency_scores"]) == 12 and row["pred_relevant_windows"] for row in rows)


def test_weights_of_one_kind_of_model_are_refused_by_another(world, tmp_path):
    out = tmp_path / "run"
    train(world.cache, overrides=["model.kind=cls", "train.epochs=1"], out=out, device="cpu")
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("kind: cls", "kind: adapter"))
    with pytest.raises(CacheError, match="do not fit"):
        evaluate(out, device="cpu")


def test_an_unknown_kind_of_model_is_refused():
    with pytest.raises(UsageError, match=r"model\.kind is 'detr', expected one of costl, cls, adapter"):
        load_config(overrides=["model.kind=detr"])


def _queries(features: CacheReader):
    from costl.data.queries import read_queries

    return read_queries(features, "test")
