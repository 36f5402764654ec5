"""The plain baseline, one token a frame and one scale, and the parts that it shares with the other baseline."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from costl.model.contrast import Match, match_frames
from costl.model.costl import Outputs, WordTokens, keep_joint, read_out
from costl.model.heads import MomentHead, SaliencyHead
from costl.model.temporal import time_waves
from costl.model.tokens import of_each


class Mlp(nn.Module):
    """CLIP's numbers to model width through two normed layers: how the field's models begin."""

    def __init__(self, *, given: int, width: int, dropout: float):
        super().__init__()
        first = (nn.LayerNorm(given), nn.Dropout(dropout), nn.Linear(given, width), nn.ReLU())
        self.layers = nn.Sequential(*first, nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """Each by itself; padding stays what it is."""
        return self.layers(x)


class TextLayer(nn.Module):
    """Pre-norm: words -> frames, all frames -> frames (with sine positions), each frame by itself."""

    def __init__(self, *, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.from_words = nn.MultiheadAttention(width, heads, batch_first=True)
        self.from_frames = nn.MultiheadAttention(width, heads, batch_first=True)
        self.alone = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        frames: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b t"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "b t d"]:
        """-> the frames, refined; padding is never looked at."""
        place = time_waves(frames.shape[1], frames.shape[2], frames.device)
        asked = self.norms[0](frames) + place
        found, _ = self.from_words(asked, words, words, key_padding_mask=~word_mask, need_weights=False)
        frames = frames + self.dropout(found)
        normed = self.norms[1](frames)
        placed = normed + place
        found, _ = self.from_frames(placed, placed, normed, key_padding_mask=~mask, need_weights=False)
        frames = frames + self.dropout(found)
        return frames + self.dropout(self.alone(self.norms[2](frames)))


class ClsModel(nn.Module):
    """CLIP's frame token alone, a transformer over frames and words, one scale; heads and losses are the model's own."""

    def __init__(
        self,
        *,
        clip_width: int,
        word_width: int,
        joint: dict[str, Tensor],
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        input_dropout: float,
    ):
        super().__init__()
        keep_joint(self, joint)
        self.words = WordTokens(word_width=word_width, width=width, dropout=input_dropout)
        space = joint["projection"].shape[1]
        self.sentence = nn.Sequential(nn.LayerNorm(space), nn.Linear(space, width))
        self.tokens = Mlp(given=clip_width, width=width, dropout=input_dropout)
        self.layers = nn.ModuleList(TextLayer(width=width, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.heads = Heads(width=width, strides=(1,))

    def forward(
        self,
        *,
        tokens: Float[Tensor, "v t n c"],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        words: Float[Tensor, "b l w"],
        word_mask: Bool[Tensor, "b l"],
        sentence: Float[Tensor, "b e"],
        most_queries: int | None = None,
        real_words: int | None = None,
        matching: bool = True,
    ) -> Outputs:
        """What the model's own forward takes and gives; of the tokens of a frame only the first is read."""
        plain, asked, mask = self.tokens(tokens[:, :, 0]), self.words(words), frame_mask[video]
        query = self.sentence(sentence)
        frames = of_each(plain, video)
        for layer in self.layers:
            frames = layer(frames, mask, asked, word_mask)
        match = match_frames(query / math.sqrt(plain.shape[-1]), plain, video) if matching else None
        return self.heads([self.norm(frames)], [mask], query, match)


class Heads(nn.Module):
    """The model's two heads over frames at one scale or several."""

    def __init__(self, *, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.moments = MomentHead(width=width, strides=strides)
        self.saliency = SaliencyHead(width=width)

    def forward(
        self,
        levels: list[Float[Tensor, "b _ d"]],
        masks: list[Bool[Tensor, "b _"]],
        query: Float[Tensor, "b d"],
        match: Match | None,
    ) -> Outputs:
        """See `read_out`."""
        return read_out(self.moments, self.saliency, levels, masks, query, match)
