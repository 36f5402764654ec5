"""The spatial encoder: a coarse step chooses the patches that matter for a query, a fine step reads them word by word.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.contrast import BatchTexts, Similarities, frame_similarities, patch_similarities
from costl.model.inputs import ModelInputs
from costl.model.tokens import (
    GatheredPatches,
    NormalisedTokens,
    QueryGroups,
    TokenNorm,
    gather_per_query,
    own_video_scores,
)


@dataclass(frozen=True)
class CoarseOutput:
    """Result of the coarse step.

    `attention` is a softmax over the patches of a frame, `pooled` the mean of the patches under it. `short_list` holds
    the patches with the most attention, `short_list_index` says which patches these are.
    """

    pooled: Float[Tensor, "b t c"]
    attention: Float[Tensor, "b t p"]
    short_list: GatheredPatches
    short_list_index: Int[Tensor, "b t k"]


@dataclass(frozen=True)
class FineOutput:
    """Result of the fine step.

    `word_attention` is a softmax of each word over the short list and a null patch, which comes last. `word_weights` is
    a softmax of each head over the words. `head_attention` follows from both: the attention of each head over the short
    list, without the null patch (so its sum may be below 1). `evidence` is what the heads read from the frame.
    """

    evidence: Float[Tensor, "b t d"]
    head_attention: Float[Tensor, "b h t k"]
    word_attention: Float[Tensor, "b t l k+1"]
    word_weights: Float[Tensor, "b h l"]


@dataclass(frozen=True)
class SpatialOutput:
    """Result of the spatial encoder.

    `frames` are the frames as their query sees them. `head_positions` says where each head of the fine step looks in each
    clip: see `SpatialEncoder._head_positions`. `similarities` are None without the contrast, `coarse`, `fine` and
    `head_positions` in an encoder without this step.
    """

    frames: Float[Tensor, "b t d"]
    similarities: Similarities | None
    coarse: CoarseOutput | None = None
    fine: FineOutput | None = None
    head_positions: Float[Tensor, "b t _"] | None = None


def coarse_attention(
    tokens: NormalisedTokens, groups: QueryGroups, scores: Float[Tensor, "b t p"], *, top_k: int
) -> CoarseOutput:
    """The coarse step: attention of a sentence over all patches of a frame, and the `top_k` patches with the most of it.

    `scores` are those of the sentence and each patch. The cost is linear in the number of patches: one inner product each.
    """
    attention = scores.softmax(-1)
    short_list_index = attention.topk(min(top_k, attention.shape[-1]), dim=-1).indices
    token_weights = groups.pack(F.pad(attention, (1, 0)))
    return CoarseOutput(
        pooled=groups.unpack(tokens.weighted_sum(token_weights)),
        attention=attention,
        short_list=tokens.gather_patches(groups.video, short_list_index),
        short_list_index=short_list_index,
    )


class FineAttention(nn.Module):
    """The fine step: attention of each word over the short list, and heads that weight the words.

    A learned null patch takes the attention of a word that has no match in the frame. The weights of a head depend on
    the words alone, not on the frame. So a head follows one thing through the video, such as the subject of the
    sentence. `order_bias` makes the first head start with the first words and the last head with the last words. The
    cost does not depend on the number of patches.
    """

    def __init__(self, *, encoder_width: int, width: int, heads: int):
        super().__init__()
        self.null_logit = nn.Linear(width, 1)
        self.head_logits = nn.Linear(width, heads)
        self.order_bias = nn.Parameter(torch.linspace(-5, 5, heads))
        self.value = nn.Parameter(torch.randn(heads, encoder_width, width // heads) / math.sqrt(encoder_width))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        short_list: GatheredPatches,
        scores: Float[Tensor, "b t l k"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
    ) -> FineOutput:
        """Evidence and the attention behind it; see `FineOutput`. `scores`: of each word with each short-listed patch."""
        null = (self.null_logit(words) + math.log(2))[:, None].expand(-1, scores.shape[1], -1, -1)
        word_attention = torch.cat([scores, null], -1).softmax(-1)
        head_logits = self.head_logits(words) + self.order_bias * _relative_position(word_mask)[..., None]
        word_weights = head_logits.masked_fill(~word_mask[..., None], -torch.inf).softmax(1).transpose(1, 2)
        head_attention = torch.einsum("bhl,btlk->bhtk", word_weights, word_attention[..., :-1])
        gathered = short_list.weighted_sum(head_attention)
        evidence = self.out(torch.einsum("bthc,hce->bthe", gathered, self.value).flatten(2))
        return FineOutput(
            evidence=evidence,
            head_attention=head_attention,
            word_attention=word_attention,
            word_weights=word_weights,
        )


def _relative_position(word_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Position of each word in its sentence: from -0.5 for the first word to 0.5 for the last."""
    word_index = word_mask.cumsum(1) - 1
    return word_index / (word_mask.sum(1, keepdim=True) - 1).clamp(min=1) - 0.5


class SpatialEncoder(nn.Module):
    """Frame = frame token + gate(result of the coarse step) + gate(result of the fine step).

    `steps` (`spatial.steps` in the settings) is 0 for the frame token, 1 with the coarse step, 2 with both steps.

    Texts are projected into the space of the patches, not patches into the space of the texts. A text then takes one
    inner product with each patch. A projection of every patch would take `width` of them, for the same scores.

    Each step returns contents and positions: the mean position of the attended patches goes through a gate of its own.
    Position embeddings added to the contents did not work: the model never learned 'on the left' in the sample world.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        width: int,
        patch_grid: tuple[int, int],
        heads: int,
        steps: int,
        top_k: int,
        dropout: float,
    ):
        super().__init__()
        self.token_norm = TokenNorm(dropout=dropout)
        self.project = nn.Linear(encoder_width, width)
        self.patch_positions: Tensor
        patch_positions = patch_position_encoding(*patch_grid)
        position_width = patch_positions.shape[1]
        self.register_buffer("patch_positions", patch_positions, persistent=False)
        self.to_encoder_space = nn.Linear(width, encoder_width, bias=False)
        nn.init.normal_(self.to_encoder_space.weight, std=1 / math.sqrt(width * encoder_width))
        self.sentence_query = _unit_variance_linear(width)
        self.top_k = top_k
        self.coarse_gate = _Gate(width=width, position_width=position_width) if steps >= 1 else None
        self.word_query = _unit_variance_linear(width) if steps >= 2 else None
        self.fine = FineAttention(encoder_width=encoder_width, width=width, heads=heads) if steps >= 2 else None
        self.head_positions_width = heads * (position_width + 1)
        self.fine_gate = _Gate(width=width, position_width=self.head_positions_width) if steps >= 2 else None

    def forward(
        self,
        inputs: ModelInputs,
        sentence: Float[Tensor, "b d"],
        words: Float[Tensor, "b l d"],
        contrast: BatchTexts | None = None,
    ) -> SpatialOutput:
        """The frames as their query sees them, and the results of the steps on the way.

        `sentence` and `words` are projected. Without `contrast` there are no similarities.
        """
        tokens = self.token_norm(inputs.tokens)
        groups = QueryGroups.from_video(inputs.video, len(inputs.tokens), inputs.most_queries)
        texts = self.project_texts(sentence, words)
        frame_tokens = tokens.frame_tokens()
        frames = gather_per_query(self.project(frame_tokens), inputs.video)
        if self.coarse_gate is None:
            similarities = frame_similarities(texts[:, 0], frame_tokens, inputs.video, contrast)
            return SpatialOutput(frames, similarities)
        similarities = patch_similarities(texts, inputs.word_mask, tokens, groups, contrast)
        sentence_scores = own_video_scores(texts[:, :1], tokens, groups)[:, 0, :, 1:]
        coarse = coarse_attention(tokens, groups, sentence_scores, top_k=self.top_k)
        frames = frames + self.coarse_gate(self.project(coarse.pooled), coarse.attention @ self.patch_positions)
        if self.fine is None or self.fine_gate is None:
            return SpatialOutput(frames, similarities, coarse)
        word_scores = coarse.short_list.scores(texts[:, 1:]).transpose(2, 3)
        fine = self.fine(coarse.short_list, word_scores, words, inputs.word_mask)
        head_positions = self._head_positions(fine, coarse).flatten(2)
        frames = frames + self.fine_gate(fine.evidence, head_positions)
        return SpatialOutput(frames, similarities, coarse, fine, head_positions)

    def project_texts(self, sentence: Float[Tensor, "b d"], words: Float[Tensor, "b l d"]) -> Float[Tensor, "b x c"]:
        """The texts that patches are compared with: the sentence, then each word if the encoder has a fine step."""
        sentence_text = self.to_encoder_space(self.sentence_query(sentence))[:, None]
        if self.word_query is None:
            return sentence_text
        return torch.cat([sentence_text, self.to_encoder_space(self.word_query(words))], 1)

    def _head_positions(self, fine: FineOutput, coarse: CoarseOutput) -> Float[Tensor, "b t h _"]:
        """Mean position of the patches that each head attends to, and the sum of its attention, scaled to -1 .. 1."""
        total = fine.head_attention.sum(-1)
        weights = fine.head_attention / (total[..., None] + 1e-4)
        positions = torch.einsum("bhtk,btkg->bthg", weights, self.patch_positions[coarse.short_list_index])
        return torch.cat([positions, 2 * total.transpose(1, 2)[..., None] - 1], -1)


def _unit_variance_linear(width: int) -> nn.Linear:
    """A linear layer after which scores have a variance of about one from the first step.

    With PyTorch's own initialisation the variance is 0.01. All patches then score alike, and it takes epochs until they
    do not.
    """
    linear = nn.Linear(width, width)
    nn.init.normal_(linear.weight, std=math.sqrt(3 / width))  # the input has a variance of 1/3
    return linear


class _Gate(nn.Module):
    """Adds contents (normalised) through a layer that starts at zero, and positions through a layer that starts open.

    With both at zero the position layer never opened: no later layer used positions yet, so no gradient came back.
    """

    def __init__(self, *, width: int, position_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.content = nn.Linear(width, width, bias=False)
        self.position = nn.Linear(position_width, width, bias=False)
        nn.init.zeros_(self.content.weight)
        # Sines have a variance of 1/2, so that the sum has a variance of one.
        nn.init.normal_(self.position.weight, std=math.sqrt(2 / position_width))

    def forward(self, content: Float[Tensor, "b t d"], position: Float[Tensor, "b t g"]) -> Float[Tensor, "b t d"]:
        return self.content(self.norm(content)) + self.position(position)


_FREQUENCIES = 6


def patch_position_encoding(rows: int, columns: int) -> Float[Tensor, "p g"]:
    """Encoding of the centre of each patch, row by row: [rows * columns, 4 * frequencies + 2].

    Sines and cosines, from half a period to several across the frame, then the plain coordinates with variance one. The
    difference of plain coordinates over time is motion.
    """
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    frequencies = torch.pi * 2 ** (torch.arange(_FREQUENCIES) / 2)
    angle = torch.cat([y.reshape(-1, 1) * frequencies, x.reshape(-1, 1) * frequencies], dim=1)
    plain = torch.stack([y.flatten() - 0.5, x.flatten() - 0.5], dim=1) * math.sqrt(12)
    return torch.cat([angle.sin(), angle.cos(), plain], dim=1)
