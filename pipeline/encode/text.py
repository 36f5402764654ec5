"""Sentences to word tokens and sentence vectors, with any text tower of open_clip."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from costl.pipeline.encode.tokenizer import Tokenizer
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CostlError, UsageError


class SentenceEncoder:
    """The text tower of `network` with its tokenizer, on `device`. Several threads may share one.

    `name`: that of the network, for errors.
    """

    def __init__(self, network: Any, tokenizer: Tokenizer, *, device: torch.device, name: str):
        self._network = network
        self._tokenizer = tokenizer
        self._device = device
        self._name = name
        # The hook of `_run_tower` sees the calls of all threads, and tokenizers store the length of the padding in themselves.
        self._in_use = threading.Lock()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[SentenceTokens]:
        """The tokens of each sentence, encoded in one batch.

        Raises UsageError for a sentence without a word, or of words that the tokenizer does not know, and CostlError when a
        value does not fit into float16.
        """
        with self._in_use:
            ids, words = self._tokenizer.ids_and_words(texts)
            described = [
                _describe(text, row[mask].tolist(), self._tokenizer, self._name)
                for text, row, mask in zip(texts, ids, words, strict=True)
            ]
            tokens, sentences = _run_tower(self._network, ids.to(self._device), self._name)
        encoded = []
        for i, (pieces, is_cut) in enumerate(described):
            stored = _to_float16(tokens[i][words[i]], self._name)
            encoded.append(SentenceTokens(stored.numpy(), sentences[i].numpy().copy(), truncated=is_cut, texts=pieces))
        return encoded


def _describe(text: str, ids: list[int], tokenizer: Tokenizer, name: str) -> tuple[tuple[str, ...], bool]:
    """The text of each word token, and whether the sentence has lost its end."""
    pieces, is_cut = tokenizer.describe(text, ids)
    if not pieces:
        raise UsageError(f"query {text!r}: no word in it. Give it a sentence or remove it.")
    if not any(piece.strip() and token != tokenizer.unknown_id for piece, token in zip(pieces, ids, strict=True)):
        raise UsageError(
            f"query {text!r}: the tokenizer of {name} knows no word of it. Write it in a language of this model, or choose "
            "a multilingual one."
        )
    return pieces, is_cut


def _run_tower(network: Any, ids: Int[Tensor, "n l"], name: str) -> tuple[Float[Tensor, "n l c"], Float[Tensor, "n e"]]:
    """Of each id its embedding, then the output of the last block; and the sentence vectors; in main memory."""
    tower = getattr(network, "text", network)
    blocks = tower.transformer
    is_transformers = hasattr(blocks, "get_input_embeddings")
    embedding = _embedding(blocks) if is_transformers else tower.token_embedding
    if int(ids.max()) >= embedding.num_embeddings:
        raise UsageError(
            f"{name}: the tokenizer gives the id {int(ids.max())}, and the text tower has {embedding.num_embeddings} "
            "embeddings. Put the tokenizer of this model next to its weights."
        )
    outputs: list[Any] = []
    hook = blocks.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        sentences = network.encode_text(ids, normalize=True)
    finally:
        hook.remove()
    # CoCa's class token follows the ids.
    context = outputs[0].last_hidden_state if is_transformers else outputs[0][:, : ids.shape[1]]
    # A word after its context varies with each word before it; its own embedding does not. From both together the model
    # learns a query about few videos far sooner.
    both = torch.cat([embedding(ids), context], dim=-1)
    return both.float().cpu(), sentences.float().cpu()


def _embedding(model: Any) -> Any:
    # In transformers 4.45 the encoder of M2M100 lacks get_input_embeddings.
    return model.embed_tokens if hasattr(model, "embed_tokens") else model.get_input_embeddings()


def _to_float16(tokens: Float[Tensor, "l c"], name: str) -> Float[Tensor, "l c"]:
    stored = tokens.to(torch.float16)
    if not torch.isfinite(stored).all():
        raise CostlError(
            f"{name}: word tokens do not fit into float16: the text tower gives {float(tokens.abs().max()):.3g}, and float16 "
            "ends at 65504. Choose another model, or get the weights again if they may be damaged."
        )
    return stored
