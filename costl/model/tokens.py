"""CLIP's tokens of a batch, normed without being written anew, and which sentence asks about which video's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-5


@dataclass(frozen=True)
class Tokens:
    """CLIP's tokens, each to mean 0 and variance 1 (`mean`, `scale`), of every video the channels that are `kept`.

    They are never written so, being most of what there is to move: what is made of the `raw` ones is put right afterwards.
    """

    raw: Float[Tensor, "v t n c"]
    mean: Float[Tensor, "v t n"]
    scale: Float[Tensor, "v t n"]
    kept: Float[Tensor, "v c"]

    @classmethod
    def of(cls, raw: Float[Tensor, "v t n c"], kept: Float[Tensor, "v c"]) -> Tokens:
        """`kept`: 0 for a channel that is dropped."""
        mean = raw.mean(-1)
        variance = torch.linalg.vector_norm(raw, dim=-1).square() / raw.shape[-1] - mean.square()
        return cls(raw, mean, (variance.clamp(min=0) + _EPS).rsqrt(), kept)

    def some(self, frames: int, patches: int) -> Tokens:
        """Every `frames`-th frame, of its patches every `patches`-th."""
        chosen = (slice(None), slice(None, None, frames), slice(1, None, patches))
        return Tokens(self.raw[chosen], self.mean[chosen], self.scale[chosen], self.kept)

    def frames(self) -> Float[Tensor, "v t c"]:
        """The first token of each frame, which is no patch."""
        return (self.raw[:, :, 0] - self.mean[:, :, :1]) * self.scale[:, :, :1] * self.kept[:, None]

    def patches(self, video: Int[Tensor, "b"], chosen: Int[Tensor, "b t k"]) -> Float[Tensor, "b t k c"]:
        """Those that are `chosen` of each frame of these videos."""
        _, clips, tokens, channels = self.raw.shape
        frame = video[:, None] * clips + torch.arange(clips, device=video.device)
        at = frame[..., None] * tokens + 1 + chosen
        found = F.embedding(at, self.raw.reshape(-1, channels))
        mean, scale = (of.flatten()[at][..., None] for of in (self.mean, self.scale))
        return found.sub_(mean).mul_(scale).mul_(self.kept[video][:, None, None])

    def scores(self, texts: Float[Tensor, "v m c"]) -> Float[Tensor, "v m t n"]:
        """Inner product of each text of a video with each of its tokens: one matrix product a video."""
        texts = texts * self.kept[:, None]
        plain = (texts @ self.raw.flatten(1, 2).transpose(1, 2)).unflatten(2, self.mean.shape[1:])
        return (plain - texts.sum(-1)[..., None, None] * self.mean[:, None]) * self.scale[:, None]

    def blended(self, share: Float[Tensor, "v m t n"]) -> Float[Tensor, "v m t c"]:
        """Sums of a frame's tokens in these shares."""
        share = share * self.scale[:, None]
        plain = torch.einsum("vmtn,vtnc->vmtc", share, self.raw)
        return (plain - (share * self.mean[:, None]).sum(-1, keepdim=True)) * self.kept[:, None, None]


class NormedTokens(nn.Module):
    """The tokens of a batch; while training, channels of a video are dropped, not single values."""

    def __init__(self, *, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "v t n c"]) -> Tokens:
        """Nothing is learned here: what texts are compared with is CLIP's own."""
        return Tokens.of(tokens, self.dropout(tokens.new_ones(len(tokens), tokens.shape[-1])))


@dataclass(frozen=True)
class Asks:
    """Which sentence asks about which video, so that work on a video's patches is one matrix product for all that ask.

    `video[b]` is the video of sentence b, one of `videos`; `slot[b]` its number among the sentences of that video, which are
    `most` at most.
    """

    video: Int[Tensor, "b"]
    slot: Int[Tensor, "b"]
    videos: int
    most: int

    @classmethod
    def of(cls, video: Int[Tensor, "b"], videos: int, most: int | None = None) -> Asks:
        """Numbers the sentences of each video. Without `most` the number is read from the device, and the host waits for it."""
        slot = (video[:, None] == video).tril(-1).sum(1)
        if most is None:
            most = int(slot.max()) + 1
        return cls(video, slot, videos, most)

    def by_video(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "v q *rest"]:
        """One row a sentence -> one row a video, zeros where a video is asked less often than another."""
        return x.new_zeros(self.videos, self.most, *x.shape[1:]).index_put((self.video, self.slot), x)

    def by_query(self, x: Float[Tensor, "v q *rest"]) -> Float[Tensor, "b *rest"]:
        """The way back."""
        return x[self.video, self.slot]


def of_each(x: Float[Tensor, "v *rest"], video: Int[Tensor, "b"]) -> Float[Tensor, "b *rest"]:
    """The row of each sentence's video. Not `x[video]`: threads would add its gradients in another order every time."""
    return x.index_select(0, video)


def score_own(texts: Float[Tensor, "b m c"], tokens: Tokens, asks: Asks) -> Float[Tensor, "b m t n"]:
    """Inner product of every text with every token of its own video."""
    asked = asks.by_video(texts)
    return asks.by_query(tokens.scores(asked.flatten(1, 2)).unflatten(1, asked.shape[1:3]))
