"""Small tokenizers and text towers of every family of open_clip, in the folder layout of open_clip."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tiny_clip import PREPROCESS, VISION

CORPUS = [
    "a dog runs on the grass, again and again!",
    "the red ball is a ball. a dog catches a red ball?",
    "a skateboarder's dog jumps over the man in black",
    "ein hund läuft schnell über die wiese, ein roter ball",
    "un chien court dans l'herbe avec une balle rouge",
    "犬が走る 犬が赤いボールを取る",
    "A Dog Runs On The Grass. The Man In Black",
] * 5
BYTES = [f"<0x{number:02X}>" for number in range(256)]
WIDTH, EMBED, CONTEXT = 32, 32, 32


@dataclass(frozen=True)
class Family:
    """A small model of one family: `tokenizer`, a function of this module without _tokenizer, and open_clip's settings."""

    tokenizer: str
    text: dict[str, Any] = field(default_factory=dict)
    tower: str = ""
    custom: bool = False
    coca: bool = False
    padding_side: str = "right"
    reads: str = "a dog runs, again! "


SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
SIGLIP |= {"act_kwargs": {"approximate": "tanh"}, "tokenizer_kwargs": {"clean": "canonicalize"}}
MEAN = {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
SPLIT, CASED, PLAIN = "a dog runs , again ! ", "A dog runs, again! ", "a dog runs again "
FAMILIES = {
    "CLIP": Family("clip", reads=SPLIT),
    "EVA, ConvNeXt": Family("clip", custom=True, reads=SPLIT),
    "MobileCLIP": Family("clip", {"no_causal_mask": True}, custom=True, reads=SPLIT),
    "MobileCLIP-B": Family("clip", {"no_causal_mask": False}, custom=True, reads=SPLIT),
    "CoCa": Family("clip", {"embed_cls": True, "output_tokens": True}, custom=True, coca=True, reads=SPLIT),
    "SigLIP": Family("t5", SIGLIP, custom=True, reads=PLAIN),
    "SigLIP, no projection": Family("t5", SIGLIP | {"proj_bias": False, "proj_type": "none"}, custom=True, reads=PLAIN),
    "SigLIP, padding left": Family("t5", SIGLIP, custom=True, padding_side="left", reads=PLAIN),
    "SigLIP, slow tokenizer": Family("siglip_slow", SIGLIP, custom=True, reads=PLAIN),
    "SigLIP 2": Family("gemma", SIGLIP, custom=True, reads=PLAIN),
    "SigLIP 2, padding left": Family("gemma", SIGLIP, custom=True, padding_side="left", reads=PLAIN),
    "CLIPA": Family(
        "bert", {"no_causal_mask": True, "pool_type": "last", "tokenizer_kwargs": {"strip_sep_token": True}}, reads=SPLIT
    ),
    "CLIPS": Family("clips", {"tokenizer_mode": "clips", "pool_type": "last"}, reads=SPLIT),
    "worldwide, mT5": Family(
        "mt5", {"pool_type": "eos", "eos_id": 1, "tokenizer_kwargs": {"clean": "canonicalize"}}, reads=PLAIN
    ),
    "worldwide, XLM-V": Family("xlm_r", {"pool_type": "eos", "eos_id": 2}, reads=CASED),
    "first": Family("xlm_r", {"pool_type": "first", "no_causal_mask": True}, reads=CASED),
    "RoBERTa": Family("roberta", MEAN, tower="roberta", reads=CASED),
    "XLM-RoBERTa": Family("xlm_r", MEAN, tower="xlm-roberta", reads=CASED),
    "mT5": Family("mt5", MEAN, tower="mt5", reads=CASED),
    "NLLB": Family("nllb", {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}, tower="m2m_100", reads=CASED),
    "NLLB-SigLIP": Family(
        "nllb", {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}, tower="m2m_100", custom=True, reads=CASED
    ),
    "Chinese CLIP": Family(
        "bert", {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "linear"}, tower="bert", reads=SPLIT
    ),
    "CoCa, RoBERTa": Family(
        "roberta", {"hf_proj_type": "linear", "output_tokens": True}, tower="roberta", custom=True, coca=True, reads=CASED
    ),
}


def write_family(folder: Path, name: str) -> Path:
    """Writes a folder of weights that `load_encoder` accepts, with the family's tokenizer and text tower."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2, **family.text}
    if family.tokenizer != "clip":
        text["vocab_size"] = write_tokenizer(folder, family.tokenizer, family.padding_side)
        text["hf_tokenizer_name"] = "unknown/tokenizer"
    if family.tower:
        write_tower_config(folder, family.tower, text["vocab_size"])
        text["hf_model_name"] = "unknown/text-tower"
    model = {"embed_dim": EMBED, "vision_cfg": VISION, "text_cfg": text}
    if family.coca:
        model["vision_cfg"] = VISION | {"output_tokens": True}
        model["multimodal_cfg"] = {"context_length": CONTEXT, "width": WIDTH, "heads": 2, "layers": 1}
    if family.custom:
        model["custom_text"] = True
    config = json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    save_file(stock_network(folder, seed=0).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def stock_network(folder: Path, seed: int | None = None) -> torch.nn.Module:
    """The network of a folder as open_clip makes it, with the stored weights, or with random ones of a `seed`."""
    model = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    custom = model.pop("custom_text", False) or "hf_model_name" in model["text_cfg"]
    kind = open_clip.CoCa if "multimodal_cfg" in model else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "hf_model_name" in model["text_cfg"]:
        model["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = kind(**model)
        for name, parameter in network.named_parameters():  # norms that do something, and embeddings far from zero
            if name.endswith("ln_final.weight"):
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            if name.endswith("token_embedding.weight"):
                torch.nn.init.normal_(parameter, std=0.5)
    if seed is None:
        open_clip.factory.load_checkpoint(network, str(folder / "open_clip_model.safetensors"))
    return network.eval()


def write_tokenizer(folder: Path, kind: str, padding_side: str = "right") -> int:
    """Writes the files of a trained tokenizer; returns its number of ids."""
    from transformers import AutoTokenizer

    if kind == "siglip_slow":
        settings = write_sentencepiece(folder)
    else:
        tokenizer, settings = globals()[f"{kind}_tokenizer"]()
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    settings |= {"padding_side": padding_side, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(AutoTokenizer.from_pretrained(folder))


def write_tower_config(folder: Path, kind: str, vocabulary: int) -> None:
    """Writes the config.json of a small text model of transformers."""
    from transformers import AutoConfig

    size = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    pads = {"pad_token_id": 0 if kind in ("bert", "mt5") else 1}
    if kind == "mt5":
        size = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    if kind == "m2m_100":
        size = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
        size |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    AutoConfig.for_model(kind, vocab_size=vocabulary, **size, **pads).save_pretrained(folder)


def t5_tokenizer() -> tuple[str, dict[str, Any]]:
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _unigram(["<pad>", "</s>", "<unk>"], "$A </s>"), {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **special}


def mt5_tokenizer() -> tuple[str, dict[str, Any]]:
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _unigram(["<pad>", "</s>", "<unk>"], "$A </s>"), {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **special}


def xlm_r_tokenizer() -> tuple[str, dict[str, Any]]:
    special = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    special |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    vocabulary = _unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s> $A </s>")
    return vocabulary, {"tokenizer_class": "XLMRobertaTokenizer", **special}


def nllb_tokenizer() -> tuple[str, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn", "jpn_Jpan", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=220, special_tokens=special, show_progress=False))
    _add_template(tokenizer, "eng_Latn $A </s>")
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    names |= {"unk_token": "<unk>", "mask_token": "<mask>", "src_lang": "eng_Latn"}
    return tokenizer.to_str(), {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": special[4:6], **names}


def gemma_tokenizer() -> tuple[str, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*special, *BYTES], show_progress=False)
    tokenizer.train_from_iterator([line.replace("犬", "") for line in CORPUS], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _add_template(tokenizer, "$A <eos>")
    stored = json.loads(tokenizer.to_str())
    stored["model"]["byte_fallback"] = True
    stored["added_tokens"] = stored["added_tokens"][: len(special)]
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, **names}
    return json.dumps(stored), settings


def bert_tokenizer(*special: str) -> tuple[str, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokens = ["[PAD]", *special, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=180, special_tokens=tokens, show_progress=False))
    _add_template(tokenizer, "[CLS] $A [SEP]")
    names = {f"{name[1:-1].lower()}_token": name for name in tokens if name[1:-1].isupper()}
    return tokenizer.to_str(), {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **names}


def clips_tokenizer() -> tuple[str, dict[str, Any]]:
    tokenizer, settings = bert_tokenizer("[unused0]", "[unused1]")
    return tokenizer, settings | {"bos_token": "[unused0]", "eos_token": "[unused1]"}


def roberta_tokenizer() -> tuple[str, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([line.replace("犬", "") for line in CORPUS], trainer)
    _add_template(tokenizer, "<s> $A </s>")
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return tokenizer.to_str(), {"tokenizer_class": "RobertaTokenizer", "unk_token": "<unk>", "mask_token": "<mask>", **names}


def write_sentencepiece(folder: Path) -> dict[str, Any]:
    """Writes spiece.model, and nothing that the `tokenizers` library reads."""
    import sentencepiece

    (folder / "corpus.txt").write_text("\n".join(CORPUS).lower(), encoding="utf-8")
    numbers = {"unk_id": 2, "eos_id": 1, "bos_id": -1, "pad_id": 0}
    prefix = str(folder / "spiece")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=prefix, vocab_size=90, hard_vocab_limit=False, minloglevel=9, **numbers
    )
    return {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _unigram(special: list[str], template: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add_template(tokenizer, template)
    return tokenizer.to_str()


def _add_template(tokenizer: Any, template: str) -> None:
    from tokenizers import processors

    names = [name for name in template.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
