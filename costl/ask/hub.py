"""Downloads an exported model from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from costl.pipeline.errors import UsageError

HUB = "hf://"
# The files of an exported model.
MODEL, CONFIG, CARD, CLIP = "model.safetensors", "config.json", "README.md", "clip"
# Of the folder of CLIP, as open_clip or transformers wrote it: settings, tokenizer and weights. None of them is unpickled.
CLIP_SUFFIXES = (".json", ".txt", ".model", ".safetensors")


def fetch(address: str) -> Path:
    """Downloads `hf://user/name` or `hf://user/name@revision` with huggingface_hub, and returns the local folder.

    Downloads only JSON, Markdown, safetensors and files of tokenizers. Raises UsageError if that fails.
    """
    name, _, revision = address.removeprefix(HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(
            f"{address}: expected hf://user/name, such as hf://someone/moments, or hf://user/name@revision."
        )
    import huggingface_hub

    patterns = [MODEL, CONFIG, CARD, *(f"{CLIP}/*{suffix}" for suffix in CLIP_SUFFIXES)]
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # of huggingface_hub, of its HTTP library, or of the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{address}: cannot be fetched ({reason}). Check the name and the connection.") from error
