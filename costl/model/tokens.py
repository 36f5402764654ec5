"""Encoder tokens of a batch, normalised without a normalised copy of all, and the grouping of queries by video.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-5


@dataclass(frozen=True)
class NormalisedTokens:
    """Encoder tokens, each normalised to mean 0 and variance 1 (`mean`, `scale`), times the `channel_mask` of its video.

    The tokens are most of what a forward reads and writes, so no normalised copy of all is made. `scores` and
    `weighted_sum` compute with the `raw` tokens and correct the result. Only chosen patches are copied.
    """

    raw: Float[Tensor, "v t s c"]
    mean: Float[Tensor, "v t s"]
    scale: Float[Tensor, "v t s"]
    channel_mask: Float[Tensor, "v c"]

    @classmethod
    def from_raw(cls, raw: Float[Tensor, "v t s c"], channel_mask: Float[Tensor, "v c"]) -> NormalisedTokens:
        """Computes `mean` and `scale`. `channel_mask` is 0 for a dropped channel, 1 / (1 - dropout) for all others."""
        mean = raw.mean(-1)
        variance = torch.linalg.vector_norm(raw, dim=-1).square() / raw.shape[-1] - mean.square()
        return cls(raw, mean, (variance.clamp(min=0) + _EPS).rsqrt(), channel_mask)

    def parts(self) -> list[slice]:
        """The videos whose patches are copied and compared at once; see `_parts`."""
        return _parts(len(self.raw), self.raw.device)

    def patches(self, videos: slice, clips: slice, step: int) -> Float[Tensor, "_ u p c"]:
        """A normalised copy of every `step`-th patch in some clips of some videos."""
        subset = (videos, clips, slice(1, None, step))
        centred = self.raw[subset] - self.mean[subset][..., None]
        return centred.mul_(self.scale[subset][..., None]).mul_(self.channel_mask[videos, None, None])

    def frame_tokens(self) -> Float[Tensor, "v t c"]:
        """The first token of each frame: the encoder's class token, which is no patch."""
        return (self.raw[:, :, 0] - self.mean[:, :, :1]) * self.scale[:, :, :1] * self.channel_mask[:, None]

    def gather_patches(self, video: Int[Tensor, "b"], patch_index: Int[Tensor, "b t k"]) -> GatheredPatches:
        """The patches with these indices, from each frame of the video of each query."""
        _, clips, tokens, channels = self.raw.shape
        frame_index = video[:, None] * clips + torch.arange(clips, device=video.device)
        token_index = frame_index[..., None] * tokens + 1 + patch_index
        channel_mask = self.channel_mask[video][:, None, None]
        pieces = []
        for queries in _parts(len(video), video.device):
            index = token_index[queries]
            patches = F.embedding(index, self.raw.reshape(-1, channels))
            patches.sub_(self.mean.flatten()[index][..., None]).mul_(self.scale.flatten()[index][..., None])
            pieces.append(patches.mul_(channel_mask[queries]))
        return GatheredPatches(tuple(pieces))

    def scores(self, texts: Float[Tensor, "v x c"]) -> Float[Tensor, "v x t s"]:
        """Inner products of each text of a video with each token of this video: one matrix product for each video."""
        texts = texts * self.channel_mask[:, None]
        raw_scores = (texts @ self.raw.flatten(1, 2).transpose(1, 2)).unflatten(2, self.mean.shape[1:])
        return (raw_scores - texts.sum(-1)[..., None, None] * self.mean[:, None]) * self.scale[:, None]

    def weighted_sum(self, weights: Float[Tensor, "v x t s"]) -> Float[Tensor, "v x t c"]:
        """Sums of the tokens of each frame with these weights."""
        weights = weights * self.scale[:, None]
        raw_sum = torch.einsum("vxts,vtsc->vxtc", weights, self.raw)
        return (raw_sum - (weights * self.mean[:, None]).sum(-1, keepdim=True)) * self.channel_mask[:, None, None]


@dataclass(frozen=True)
class GatheredPatches:
    """Some normalised patches of each frame, in pieces of one or more queries; see `_parts`."""

    pieces: tuple[Float[Tensor, "_ t k c"], ...]

    def scores(self, texts: Float[Tensor, "b x c"]) -> Float[Tensor, "b t k x"]:
        """Inner products of the patches for each query with each text of this query."""
        texts_of_pieces = texts.split([len(piece) for piece in self.pieces])
        return torch.cat([inner_products(*pair) for pair in zip(self.pieces, texts_of_pieces, strict=True)])

    def weighted_sum(self, weights: Float[Tensor, "b x t k"]) -> Float[Tensor, "b t x c"]:
        """Sums of the patches of each frame with these weights."""
        weights_of_pieces = weights.split([len(piece) for piece in self.pieces])
        pairs = zip(weights_of_pieces, self.pieces, strict=True)
        return torch.cat([torch.einsum("bxtk,btkc->btxc", *pair) for pair in pairs])


def _parts(count: int, device: torch.device) -> list[slice]:
    """The videos or queries to compute with at once, of `count`: all on a GPU, one on a CPU.

    What is computed for one stays in the CPU's cache, and its memory serves the next one.
    """
    if device.type != "cpu":
        return [slice(0, count)]
    return [slice(i, i + 1) for i in range(count)]


def inner_products(patches: Float[Tensor, "v t p c"], texts: Float[Tensor, "v x c"]) -> Float[Tensor, "v t p x"]:
    """Inner products of each patch of a video with each text of this video."""
    if len(patches) > 1 or patches.device.type != "cpu":
        return torch.einsum("vtpc,vxc->vtpx", patches, texts)
    # As a convolution over single patches: PyTorch computes it with oneDNN, which can be twice as fast as MKL's product.
    channels_first = patches[0].transpose(1, 2)[:, :, None]
    return F.conv2d(channels_first, texts[0, :, :, None, None]).squeeze(2).transpose(1, 2)[None]


class TokenNorm(nn.Module):
    """Normalises the tokens of a batch. In training, dropout removes whole channels of a video, not single values."""

    def __init__(self, *, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "v t s c"]) -> NormalisedTokens:
        """The normalised tokens. Nothing is learned here: texts are compared with the encoder's own tokens."""
        return NormalisedTokens.from_raw(tokens, self.dropout(tokens.new_ones(len(tokens), tokens.shape[-1])))


@dataclass(frozen=True)
class QueryGroups:
    """The queries of a batch grouped by video, so that one matrix product serves all queries of a video.

    `video[b]` is the index of the video of query b, below `video_count`. `slot[b]` is the index of query b among the
    queries of this video, below `most_queries`.
    """

    video: Int[Tensor, "b"]
    slot: Int[Tensor, "b"]
    video_count: int
    most_queries: int

    @classmethod
    def from_video(cls, video: Int[Tensor, "b"], video_count: int, most_queries: int) -> QueryGroups:
        """Numbers the queries of each video."""
        return cls(video, (video[:, None] == video).tril(-1).sum(1), video_count, most_queries)

    def pack(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "v q *rest"]:
        """From one row for each query to one row for each video, padded with zeros."""
        return x.new_zeros(self.video_count, self.most_queries, *x.shape[1:]).index_put((self.video, self.slot), x)

    def unpack(self, x: Float[Tensor, "v q *rest"]) -> Float[Tensor, "b *rest"]:
        """The inverse of `pack`."""
        return x[self.video, self.slot]


def gather_per_query(x: Float[Tensor, "v *rest"], video: Int[Tensor, "b"]) -> Float[Tensor, "b *rest"]:
    """The row of the video of each query. Not `x[video]`: its gradient is summed by threads in an order that varies."""
    return x.index_select(0, video)


def own_video_scores(
    texts: Float[Tensor, "b x c"], tokens: NormalisedTokens, groups: QueryGroups
) -> Float[Tensor, "b x t s"]:
    """Inner products of the texts of each query with each token of its own video."""
    packed = groups.pack(texts)
    return groups.unpack(tokens.scores(packed.flatten(1, 2)).unflatten(1, packed.shape[1:3]))
