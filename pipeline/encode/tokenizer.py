"""The tokenizer of a text tower: the ids of sentences, which of them are words, and the text of each word token."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from jaxtyping import Bool, Int
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from torch import Tensor

from costl.pipeline.encode.weights import Source, hub_is_reachable
from costl.pipeline.errors import UsageError

# A tokenizer of transformers has one of these files. Without one, transformers makes a tokenizer that knows no word.
_VOCABULARIES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.txt", "vocab.json")
_FILES = "tokenizer_config.json and tokenizer.json (or spiece.model, sentencepiece.bpe.model, vocab.txt)"


class ClipTokenizer:
    """CLIP's own tokenizer, whose ids are [start, words, end, padding]. Padding has the id of the word "!"."""

    unknown_id = None

    def __init__(self, tokenizer: SimpleTokenizer):
        self._tokenizer = tokenizer

    def ids_and_words(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n l"], Bool[Tensor, "n l"]]:
        """The ids of each sentence, and which of them are words."""
        ids = self._tokenizer(list(texts))
        words = (ids == self._tokenizer.eot_token_id).cumsum(dim=1) == 0
        words[:, 0] = False
        return ids, words

    def describe(self, text: str, ids: list[int]) -> tuple[tuple[str, ...], bool]:
        """The text of each word token of a sentence, and whether the sentence has lost its end."""
        is_cut = len(self._tokenizer.encode(text)) > self._tokenizer.context_length - 2
        return tuple(self._tokenizer.decode([token]) for token in ids), is_cut


class TransformersTokenizer:
    """A tokenizer of transformers in open_clip's wrapper: which ids are words is what its own masks say."""

    def __init__(self, tokenizer: HFTokenizer):
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.tokenizer
        self.unknown_id = self._backend.unk_token_id
        model = getattr(getattr(self._backend, "backend_tokenizer", None), "model", None)
        self._is_wordpiece = type(model).__name__ == "WordPiece"

    def ids_and_words(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n l"], Bool[Tensor, "n l"]]:
        """The ids of each sentence, and which of them are words: neither special nor padding. Unknown tokens are words."""
        ids = self._tokenizer(list(texts))
        if self._tokenizer.tokenizer_mode == "clips":  # open_clip adds the special tokens, so the tokenizer has no mask
            special = [token for token in self._backend.all_special_ids if token != self.unknown_id]
            return ids, ~torch.isin(ids, torch.tensor(special))
        marked = self._backend(
            [self._tokenizer.clean_fn(text) for text in texts],
            return_tensors="pt",
            max_length=ids.shape[1],
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_special_tokens_mask=True,
        )
        words = marked.attention_mask.bool() & ~marked.special_tokens_mask.bool()
        assert torch.equal(ids[words], marked.input_ids[words]), "open_clip calls the tokenizer with the same arguments"
        return ids, words

    def describe(self, text: str, ids: list[int]) -> tuple[tuple[str, ...], bool]:
        """The text of each word token of a sentence, and whether the sentence has lost its end."""
        whole = self._backend(self._tokenizer.clean_fn(text), add_special_tokens=False, verbose=False).input_ids
        # The token after the last one tells whether the last one ends a word.
        pieces = self._pieces([*ids, *whole[len(ids) : len(ids) + 1]])
        return tuple(pieces[: len(ids)]), len(whole) > len(ids)

    def _pieces(self, ids: list[int]) -> list[str]:
        """What decoding one more token adds, for each token, with the space before a word moved to the end of the last one.

        A character of several tokens is the text of its last token.
        """
        pieces = []
        before = ""
        for count in range(1, len(ids) + 1):
            decoded = self._decode(ids[:count])
            pieces.append(decoded.removeprefix(before))
            before = decoded
        return [
            piece.strip() + (" " if after[:1].isspace() or piece.lstrip()[-1:].isspace() else "")
            for piece, after in pairwise([*pieces, " "])
        ]

    def _decode(self, ids: list[int]) -> str:
        if self._is_wordpiece:  # its decoder moves spaces to where English has them, also in front of earlier tokens
            return " ".join(self._backend.convert_ids_to_tokens(ids)).replace(" ##", "")
        # A character of which a token is missing is decoded as U+FFFD.
        return self._backend.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).rstrip("\ufffd")


Tokenizer = ClipTokenizer | TransformersTokenizer


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer that open_clip has for a network.

    That of a folder is read from the folder; another one that is not on this disk is downloaded. Raises UsageError if
    transformers is not installed, and for files that are missing or cannot be read, without waiting for a network.
    """
    text = dict((source.config or open_clip.get_model_config(source.architecture))["text_cfg"])
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    settings = text.get("tokenizer_kwargs") or {}
    hub_name = text.get("hf_tokenizer_name")
    if not hub_name:
        return ClipTokenizer(_clip_tokenizer(json.dumps({**settings, "context_length": length})))
    if find_spec("transformers") is None:
        raise UsageError(
            f"{source.name}: its tokenizer needs transformers, which is not installed. Run pip install 'costl[transformers]'."
        )
    settings = {**settings, "context_length": length, "tokenizer_mode": text.get("tokenizer_mode")}
    if source.config or source.architecture.startswith("local-dir:"):
        folder = Path(hub_name if source.config else source.architecture.removeprefix("local-dir:"))
        _check_folder(folder, hub_name)
        return _read(str(folder), settings)
    cached = _cached_folder(hub_name)
    if not (cached or hub_is_reachable()):
        raise UsageError(
            f"{source.name}: its tokenizer {hub_name} is not on this disk and cannot be downloaded. Connect once, or give as "
            f"weights a folder with open_clip_config.json, open_clip_model.safetensors and, of {hub_name}, {_FILES}."
        )
    return _read(cached or hub_name, settings)


@functools.lru_cache(maxsize=8)
def _clip_tokenizer(settings: str) -> SimpleTokenizer:
    """CLIP's tokenizer with settings in JSON: its 49,000 merges are read once a process, not once an encoder."""
    return SimpleTokenizer(**json.loads(settings))


def _cached_folder(hub_name: str) -> str | None:
    """Where the files of a tokenizer are that was downloaded before; transformers would ask the hub for others."""
    files = [huggingface_hub.try_to_load_from_cache(hub_name, file) for file in ("tokenizer_config.json", *_VOCABULARIES)]
    on_disk = [file for file in files if isinstance(file, str)]
    return str(Path(on_disk[0]).parent) if on_disk[:1] == files[:1] and on_disk[1:] else None


def _check_folder(folder: Path, hub_name: str) -> None:
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        origin = "its model" if hub_name == str(folder) else hub_name
        raise UsageError(f"{folder}: the tokenizer is missing. Put there, of {origin}, {_FILES}.")


def _read(place: str, settings: Mapping[str, Any]) -> TransformersTokenizer:
    try:
        tokenizer = HFTokenizer(place, **settings)
        if tokenizer.tokenizer.pad_token is None:
            raise ValueError("it has no padding token; is tokenizer_config.json missing?")
    except Exception as error:  # transformers passes on all errors of json, tokenizers and sentencepiece
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UsageError(f"{place}: the tokenizer cannot be read ({reason[0][:200]}). Get its files again: {_FILES}.") from error
    return TransformersTokenizer(tokenizer)
