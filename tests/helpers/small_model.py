"""A small model, random inputs for it, and a data set of three videos that it can learn by one batch."""

from __future__ import annotations

from dataclasses import fields, replace

import jaxtyping
import numpy as np
import torch
from torch import Tensor, nn

from costl.config import Config, load_config
from costl.data.annotations import Query
from costl.data.batch import Batch
from costl.model.build import Model, build_model
from costl.model.contrast import BatchTexts
from costl.model.costl import CoSTL, Outputs
from costl.model.inputs import ModelInputs
from costl.pipeline.encode.types import SentenceTokens, TokenProjection
from costl.pipeline.grid import Grid
from costl.training.objective import total_loss

C, W, E, D = 12, 10, 8, 16
SMALL = {"model": {"width": D, "heads": 2, "dropout": 0.0, "input_dropout": 0.0}, "spatial": {"top_k": 4}}
VARIANTS = [
    *([f"spatial.steps={n}"] for n in (0, 1, 2)),
    ["spatial.clip_prior=false"],
    ["temporal.strides=[1]"],
    ["temporal.layers=0"],
    ["temporal.null_tokens=0"],
    ["spatial.top_k=1"],
    ["spatial.top_k=999", "temporal.kernel=1"],
]
# Videos by their number of clips, and queries as (video, number of words).
CLIPS, QUERIES = [1, 13, 6, 9, 2], [(0, 3), (1, 1), (3, 7), (2, 2), (1, 4), (4, 5)]
NEGATIVE_PAIRS = [(0, 2), (3, 5), (4, 0)]


def untrained(config: Config, grid: tuple[int, int] = (2, 3)) -> Model:
    """The model of these settings for features of the sizes above."""
    return build_model(config, encoder_width=C, word_width=W, patch_grid=grid, joint_width=E, logit_scale=10.0)


def small_model(*overrides: str, grid: tuple[int, int] = (2, 3), perturbed: bool = True) -> CoSTL:
    """A model in evaluation mode; with `perturbed` no gate is at zero, so that every part changes the outputs."""
    torch.manual_seed(0)
    config = load_config(SMALL, overrides=overrides)
    model = untrained(config, grid).eval()
    with torch.no_grad():
        for parameter in model.parameters() if perturbed else ():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_inputs(
    clips: list[int], queries: list[tuple[int, int]], *, patches: int = 6, garbage: float = 0.0
) -> ModelInputs:
    """Inputs for videos with these numbers of clips and queries (video, number of words); `garbage` fills the padding."""
    generator = torch.Generator().manual_seed(2)
    frame_mask = torch.arange(max(clips)) < torch.tensor(clips)[:, None]
    word_mask = torch.arange(max(n for _, n in queries)) < torch.tensor([n for _, n in queries])[:, None]
    tokens = torch.randn(*frame_mask.shape, 1 + patches, C, generator=generator)
    words = torch.randn(*word_mask.shape, W, generator=generator)
    joint = nn.functional.normalize(torch.randn(*frame_mask.shape, E, generator=generator), dim=-1)
    return ModelInputs(
        tokens=torch.where(frame_mask[..., None, None], tokens, garbage),
        joint=torch.where(frame_mask[..., None], joint, garbage),
        frame_mask=frame_mask,
        video=torch.tensor([v for v, _ in queries]),
        words=torch.where(word_mask[..., None], words, garbage),
        word_mask=word_mask,
        sentence=nn.functional.normalize(torch.randn(len(queries), E, generator=generator), dim=-1),
    )


def batch_of_one(inputs: ModelInputs, row: int) -> ModelInputs:
    """The batch of one with this query and its video, without any padding."""
    video, real_words = int(inputs.video[row]), inputs.word_mask[row]
    real_frames = inputs.frame_mask[video]
    return ModelInputs(
        tokens=inputs.tokens[video, real_frames][None],
        joint=inputs.joint[video, real_frames][None],
        frame_mask=real_frames[real_frames][None],
        video=torch.zeros(1, dtype=torch.long),
        words=inputs.words[row, real_words][None],
        word_mask=real_words[real_words][None],
        sentence=inputs.sentence[row : row + 1],
    )


def run(model: CoSTL, inputs: ModelInputs) -> Outputs:
    with torch.no_grad():
        return with_contrast(model, inputs)


def with_contrast(model: CoSTL, inputs: ModelInputs) -> Outputs:
    return model(inputs, contrast=BatchTexts.of_inputs(inputs))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def padded_further(inputs: ModelInputs, *, clips: int, words: int, garbage: float) -> ModelInputs:
    """The same batch with so many more masked clips behind every video and masked words behind every sentence."""
    pad = nn.functional.pad
    return replace(
        inputs,
        tokens=pad(inputs.tokens, (0, 0, 0, 0, 0, clips), value=garbage),
        joint=pad(inputs.joint, (0, 0, 0, clips), value=garbage),
        frame_mask=pad(inputs.frame_mask, (0, clips)),
        words=pad(inputs.words, (0, 0, 0, words), value=garbage),
        word_mask=pad(inputs.word_mask, (0, words)),
    )


def check_more_padding(model: nn.Module) -> None:
    """More padding of a batch must not change the outputs of the model."""
    inputs = random_inputs(CLIPS, QUERIES)
    before = run(model, inputs)
    for clips, words in ((1, 0), (0, 3), (9, 5)):
        after = run(model, padded_further(inputs, clips=clips, words=words, garbage=50.0))
        for row, (video, _) in enumerate(QUERIES):
            old, new, real = before.position_mask[row], after.position_mask[row], CLIPS[video]
            for name in ("foreground", "spans"):
                assert close(getattr(after, name)[row, new], getattr(before, name)[row, old]), name
            assert close(after.centres[new], before.centres[old])
            assert close(after.saliency[row, :real], before.saliency[row, :real])
            assert close(after.similarities.positives[:, row, :real], before.similarities.positives[:, row, :real])


class Sprites:
    """Three videos of twelve clips; during a moment, one of the nine patches shows the thing that its sentence names."""

    fps, patch_grid = 0.5, (3, 3)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.things = rng.normal(size=(6, C)).astype(np.float32) * 2
        self.names = rng.normal(size=(6, 3, W)).astype(np.float16)
        self.noise = rng.normal(size=(3, 12, 10, C)).astype(np.float16) * np.float16(0.5)
        self.projection = TokenProjection(
            np.ones(C, np.float32), np.zeros(C, np.float32), 1e-5, rng.normal(size=(C, E)).astype(np.float32)
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

    def joint_vectors(self, video_id: str, *, clips=slice(None)) -> np.ndarray:
        return self.projection.project(self.tokens(video_id, clips=clips)[:, 0])

    def words(self, query: str) -> SentenceTokens:
        number = int(query.split()[1])
        sentence = self.things[number] @ self.projection.projection
        return SentenceTokens(self.names[number], (sentence / np.linalg.norm(sentence)).astype(np.float32))


def overfit(model: nn.Module, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """The loss before and after 60 steps on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    first, parts = total_loss(with_contrast(model, batch.inputs), batch, config.loss)
    assert {*parts} == {field.name for field in fields(config.loss)}
    loss = first
    jaxtyping.config.update("jaxtyping_disable", True)  # the shapes of the first step are those of all
    for _ in range(60):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss, _ = total_loss(with_contrast(model, batch.inputs), batch, config.loss)
    jaxtyping.config.update("jaxtyping_disable", False)
    return first, loss


def longer(batch: Batch) -> Batch:
    """The same batch with five more clips, three more words and two more moments for each query, all masked."""
    pad = nn.functional.pad
    return replace(
        batch,
        inputs=padded_further(batch.inputs, clips=5, words=3, garbage=9.0),
        frame_mask=pad(batch.frame_mask, (0, 5)),
        moments=pad(batch.moments, (0, 0, 0, 2), value=3.0),
        moment_mask=pad(batch.moment_mask, (0, 2)),
        ratings=pad(batch.ratings, (0, 5)),
        relevant=pad(batch.relevant, (0, 5)),
    )
