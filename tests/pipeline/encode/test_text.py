"""Words and sentences of every family of tokenizers and text towers equal open_clip's own."""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.factory import get_model_config
from tiny_clip import write_clip_weights
from tiny_text import CONTEXT, FAMILIES, stock_network, write_family

from costl.pipeline import world
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import UsageError

TINY = Path(world.__file__).parent / "costl-tiny"

SENTENCES = {
    "English": "A dog runs, again!",
    "German": "Ein Hund läuft über die Wiese.",
    "Japanese": "犬が走る",
    "one word": "dog",
    "punctuation": "?!",
    "mixed case": "A dOG iN bLACK",
    "emoji": "a dog 😀 runs",
    "300 words": "a red dog " * 100,
}


def needs_transformers(name: str) -> None:
    family = FAMILIES[name]
    for package in ["transformers"] * (family.tokenizer != "clip") + ["sentencepiece"] * (family.tokenizer == "siglip_slow"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra `test`")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function of a family's name: its folder, our encoder, and open_clip's own network and tokenizer."""
    ready = {}

    def make(name: str):
        needs_transformers(name)
        if name not in ready:
            folder = write_family(tmp_path_factory.mktemp("family"), name)
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
            ready[name] = (folder, load_encoder(weights=str(folder)), stock_network(folder), tokenizer)
        return ready[name]

    return make


def plain_ids(tokenizer, text: str) -> list[int]:
    """The ids of a sentence without special tokens and without a limit."""
    if hasattr(tokenizer, "tokenizer"):
        return tokenizer.tokenizer(tokenizer.clean_fn(text), add_special_tokens=False).input_ids
    return tokenizer.encode(text)


def is_unknown(tokenizer, ids: list[int]) -> bool:
    backend = getattr(tokenizer, "tokenizer", None)
    return backend is not None and all(backend.convert_ids_to_tokens(n) in ("<unk>", "[UNK]", "▁") for n in ids)


@pytest.mark.parametrize("text", SENTENCES.values(), ids=SENTENCES)
@pytest.mark.parametrize("name", FAMILIES)
def test_words_and_sentences_are_those_of_open_clip(made, name, text):
    _, encoder, network, tokenizer = made(name)
    plain = plain_ids(tokenizer, text)
    if is_unknown(tokenizer, plain):
        with pytest.raises(UsageError, match="knows no word of it" if plain else "no word in it"):
            encoder.encode_text([text])
        return
    words, _ = encoder.encode_text([text, "a dog"])
    kept = plain[: len(words.tokens)]
    ids = tokenizer([text])
    first = next(i for i in range(ids.shape[1]) if ids[0, i : i + len(kept)].tolist() == kept)
    with torch.inference_mode():
        sentence = network.encode_text(ids, normalize=True)
        embeddings, context = tower_states(network, ids)
    expected = torch.cat([embeddings, context], dim=-1)[0, first : first + len(kept)]
    np.testing.assert_allclose(words.sentence, sentence[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(words.tokens.astype(np.float32), expected.numpy(), atol=2e-3, rtol=2e-3)
    assert words.truncated == (len(plain) > len(kept)) == (text == SENTENCES["300 words"])
    assert len(kept) >= CONTEXT - 3 or not words.truncated
    assert len(words.texts) == len(kept)


def tower_states(network, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedding of each id, and the output of the last block."""
    tower = getattr(network, "text", network)
    if hasattr(tower, "config"):
        output = tower.transformer(input_ids=ids, attention_mask=(ids != tower.config.pad_token_id).long())
        embedding = getattr(tower.transformer, "embed_tokens", None) or tower.transformer.get_input_embeddings()
        return embedding(ids), output.last_hidden_state
    return tower.token_embedding(ids), network.forward_intermediates(text=ids, text_indices=1)["text_intermediates"][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_texts_of_the_tokens_read_like_the_sentence(made, name):
    encoder = made(name)[1]
    english, emoji, umlaut = encoder.encode_text(["A dog runs, again!", "dog 😀 runs", "ein läuft"])
    assert "".join(english.texts) == FAMILIES[name].reads
    assert "".join(emoji.texts) in [f"dog {known}runs " for known in ("😀 ", "<unk> ", "<unk>", "[UNK] ")]
    assert "".join(umlaut.texts).lower() in ("ein läuft ", "ein lauft ")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sentence_that_just_fits_is_not_truncated(made, name):
    encoder = made(name)[1]
    [long] = encoder.encode_text(["a " * 300])
    fits, too_long = encoder.encode_text(["a " * len(long.tokens), "a " * (len(long.tokens) + 1)])
    assert (len(fits.tokens), fits.truncated) == (len(long.tokens), False)
    assert (len(too_long.tokens), too_long.truncated) == (len(long.tokens), True)


@pytest.mark.parametrize("name", ["CLIP", "CoCa", "SigLIP", "XLM-RoBERTa"])
def test_threads_that_share_an_encoder_get_their_own_words(made, name):
    _, encoder, _, _ = made(name)
    batches = [["a dog"], ["a red dog runs on the grass"] * 3, ["ball"] * 40, ["a cat", "a long sentence about a cat"]] * 8
    expected = [encoder.encode_text(batch) for batch in batches]
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(encoder.encode_text, batches))
    finally:
        sys.setswitchinterval(interval)
    for answer, sentences in zip(answers, expected, strict=True):
        for one, two in zip(answer, sentences, strict=True):
            np.testing.assert_array_equal(one.tokens, two.tokens)
            np.testing.assert_array_equal(one.sentence, two.sentence)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_sentence_is_refused(made, name, text):
    with pytest.raises(UsageError, match="no word in it"):
        made(name)[1].encode_text(["a dog", text])


@pytest.mark.parametrize("name", ["SigLIP", "SigLIP, slow tokenizer", "CLIPA", "XLM-RoBERTa", "mT5", "NLLB", "Chinese CLIP"])
def test_a_sentence_of_unknown_words_is_refused_by_name(made, name):
    with pytest.raises(UsageError, match=r"query 'Собака': the tokenizer of config \w+ knows no word of it"):
        made(name)[1].encode_text(["a dog", "Собака"])
    [known] = made(name)[1].encode_text(["a Собака runs"])
    assert len(known.tokens) >= 3, "an unknown word among others is a word"


# The models that CoSTL could use from the start

FIRST = [
    "a dog runs",
    "A Skateboarder's naïve dog, 犬",
    "!",
    "! !! wow!",
    "dog " * 300,
    "😀 smile &amp; don't stop_me 123",
    "<start_of_text> a b",
    "a <end_of_text> b",
]


@pytest.mark.parametrize("where", ["costl-tiny", "random"])
def test_words_of_clips_own_tokenizer_are_what_they_were(where, tmp_path):
    folder = TINY if where == "costl-tiny" else write_clip_weights(tmp_path / "clip")
    encoder = load_encoder(weights=str(folder))
    ours = encoder.encode_text(FIRST)
    for words, first in zip(ours, first_version(encoder._network, open_clip.get_tokenizer(f"local-dir:{folder}")), strict=True):
        assert words.tokens.tobytes() == first.tokens.tobytes() and words.sentence.tobytes() == first.sentence.tobytes()
        assert (words.texts, words.truncated) == (first.texts, first.truncated)
    if where == "costl-tiny":  # stored numbers and texts, which no processor rounds
        embeddings = b"".join(words.tokens[:, : words.tokens.shape[1] // 2].tobytes() for words in ours)
        described = json.dumps([[words.texts, words.truncated] for words in ours]).encode()
        assert hashlib.sha256(embeddings).hexdigest()[:16] == "fb6c5b2db2eb3102"
        assert hashlib.sha256(described).hexdigest()[:16] == "527899836330b771"


@torch.inference_mode()
def first_version(network, tokenizer) -> list[SentenceTokens]:
    """How version 0.2.0 encodes FIRST."""
    ids = tokenizer(FIRST)
    output = network.forward_intermediates(text=ids, text_indices=1, normalize=True)
    both = torch.cat([network.token_embedding(ids), output["text_intermediates"][0]], dim=-1).to(torch.float16).numpy()
    ends = (ids == tokenizer.eot_token_id).int().argmax(dim=1).tolist()
    return [
        SentenceTokens(
            both[i, 1:end],
            output["text_features"][i].numpy(),
            truncated=len(tokenizer.encode(text)) > ids.shape[1] - 2,
            texts=tuple(tokenizer.decode([token]) for token in ids[i, 1:end].tolist()),
        )
        for i, (text, end) in enumerate(zip(FIRST, ends, strict=True))
    ]


# Every architecture of open_clip


def tower_family(model: dict) -> str:
    text = model["text_cfg"]
    kind = "CoCa" if "multimodal_cfg" in model else "custom" if model.get("custom_text") else "CLIP"
    if "hf_model_name" in text:
        return f"{'CoCa' if kind == 'CoCa' else 'custom'} {text.get('hf_pooler_type', 'mean_pooler')}"
    direction = "both ways" if text.get("no_causal_mask") else "causal"
    class_token = " class token" if text.get("embed_cls") else ""
    return f"{kind} {text.get('pool_type', 'argmax')} {direction}{class_token}"


TOKENIZERS = {
    "SigLIP2": "gemma",
    "SigLIP": "t5",
    "mt5": "mt5",
    "xlm-v": "xlm_r",
    "xlm-roberta": "xlm_r",
    "nllb": "nllb",
    "bert-base-uncased": "bert",
    "roberta-base": "roberta",
}
TOWERS = {"xlm-roberta": "xlm-roberta", "roberta": "roberta", "mt5": "mt5", "nllb": "m2m_100"}


def first_part(parts: dict[str, str], name: str) -> str:
    return next((family for part, family in parts.items() if part in name), f"unknown: {name}") if name else ""


def row_of(name: str) -> tuple[str, str, str]:
    family = FAMILIES[name]
    model = {"text_cfg": family.text | ({"hf_model_name": family.tower} if family.tower else {})}
    model |= {"custom_text": family.custom} | ({"multimodal_cfg": {}} if family.coca else {})
    return family.tokenizer, family.tower, tower_family(model)


@pytest.mark.parametrize("architecture", open_clip.list_models())
def test_a_row_covers_every_architecture_of_open_clip(architecture):
    model = get_model_config(architecture)
    text = model["text_cfg"]
    tokenizer = first_part(TOKENIZERS, text.get("hf_tokenizer_name", "")) or "clip"
    tower = first_part(TOWERS, text.get("hf_model_name", ""))
    assert (tokenizer, tower, tower_family(model)) in {row_of(name) for name in FAMILIES}
    assert text.get("tokenizer_mode") in (None, "clips")
