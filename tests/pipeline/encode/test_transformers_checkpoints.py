"""A folder that transformers wrote gives the features that transformers computes from it, or is refused in one sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from costl.pipeline.encode import transformers_weights
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.encode.names import check_names
from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.encode.transformers_config import DEFAULTS, IMAGE_DEFAULTS, read_config
from costl.pipeline.encode.weights import build_network, find_source, hash_of_weights
from costl.pipeline.errors import UsageError

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest value of transformers
TOWER = {"hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 98, "pad_token_id": 0}
TEXT = TOWER | IDS | {"vocab_size": 99, "max_position_embeddings": 16}
CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
KINDS: dict[str, Any] = {
    "clip": ("CLIP", {"image_size": 32, "patch_size": 8}, CROP),
    "siglip": ("Siglip", {"image_size": 32, "patch_size": 8}, {"size": {"height": 32, "width": 32}}),
    "siglip2": ("Siglip2", {"num_patches": 16, "patch_size": 8}, {}),
    "chinese_clip": ("ChineseCLIP", {"image_size": 32, "patch_size": 8}, CROP),
}
WORDS = torch.tensor([[1, 5, 9, 98, 3, 7] + [0] * 10, [1, 44, 98, 1, 97, 98] + [0] * 10])


def write(folder: Path, kind: str, *, vision: Any = (), text: Any = (), images: Any = (), **config: Any) -> torch.nn.Module:
    """Writes a small random checkpoint with transformers, and returns the model."""
    name, sizes, preparation = KINDS[kind]
    config = {"projection_dim": 24} | config if "clip" in kind else config
    settings = getattr(transformers, f"{name}Config")(
        vision_config=TOWER | sizes | dict(vision), text_config=TEXT | dict(text), **config
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(settings).eval()
    for parameter in model.parameters():  # norms that do nothing would hide a missing one
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    model.save_pretrained(folder)
    getattr(transformers, f"{name}ImageProcessor")(**preparation | dict(images)).save_pretrained(folder)
    return model


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pixels_for(kind: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    if kind != "siglip2":
        return {"pixel_values": pixels}
    patches = pixels.reshape(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), 16, -1)
    shapes = torch.tensor([[4, 4]] * len(pixels))
    return {"pixel_values": patches, "pixel_attention_mask": torch.ones(patches.shape[:2]), "spatial_shapes": shapes}


@torch.inference_mode()
def their_features(folder: Path, kind: str, pixels: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    """Image features, patches after the last block, and text features, in float32."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    blocks: list[Any] = []
    hook = model.vision_model.encoder.layers[-1].register_forward_hook(lambda *call: blocks.append(call[2]))
    image = model.get_image_features(**pixels_for(kind, pixels))
    hook.remove()
    patches = blocks[0] if isinstance(blocks[0], torch.Tensor) else blocks[0][0]
    attention = {"attention_mask": (words != 0).long()} if kind == "chinese_clip" else {}
    text = model.get_text_features(input_ids=words, **attention)
    image, text = (value if isinstance(value, torch.Tensor) else value.pooler_output for value in (image, text))
    return [image, patches[:, 1:] if "clip" in kind else patches, text]


@torch.inference_mode()
def our_features(network: Any, pixels: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    last = network.visual.forward_intermediates(
        pixels, indices=1, output_fmt="NLC", normalize_intermediates=False, intermediates_only=True
    )
    return [network.encode_image(pixels), last["image_intermediates"][0], network.encode_text(words)]


def compare(folder: Path, kind: str, *, words: torch.Tensor = WORDS) -> Any:
    network = build_network(find_source("ViT-B-32", str(folder)))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    theirs = their_features(folder, kind, pixels, words)
    for name, ours, expected in zip(("image", "patches", "text"), our_features(network, pixels, words), theirs, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == expected.shape
        assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max(), name
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind, tmp_path):
    model = write(tmp_path, kind)
    network = compare(tmp_path, kind)
    assert torch.equal(network.logit_scale, model.logit_scale.reshape(()))
    if "siglip" in kind:
        assert torch.equal(network.logit_bias, model.logit_bias.reshape(()))
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


BOTH = ("vision", "text")
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("clip", {part: {"hidden_act": "gelu"} for part in BOTH}),
    "tanh": ("clip", {part: {"hidden_act": "gelu_pytorch_tanh"} for part in BOTH}),
    "two activations": ("clip", {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu_new"}}),
    "epsilon": ("clip", {part: {"layer_norm_eps": 0.3} for part in BOTH}),
    "end of text 2": ("clip", {"text": {"eos_token_id": 2}}),
    "a first end of text": ("clip", {"text": {"eos_token_id": 97}}),
    "heads": ("clip", {"vision": {"num_attention_heads": 2}, "text": {"num_attention_heads": 8}}),
    "no projection to another width": ("clip", {"projection_dim": 32}),
    "siglip gelu": ("siglip", {part: {"hidden_act": "gelu"} for part in BOTH}),
    "siglip quick_gelu": ("siglip", {part: {"hidden_act": "quick_gelu"} for part in BOTH}),
    "siglip epsilon": ("siglip", {part: {"layer_norm_eps": 0.3} for part in BOTH}),
    "siglip heads": ("siglip", {"vision": {"num_attention_heads": 2}, "text": {"num_attention_heads": 8}}),
    "siglip of another text width": ("siglip", {"text": {"hidden_size": 48, "projection_size": 32}}),
    "a patch that does not divide the image": ("siglip", {"vision": {"patch_size": 7}}),
    "siglip2 epsilon": ("siglip2", {part: {"layer_norm_eps": 0.3} for part in BOTH}),
    "chinese gelu": ("chinese_clip", {"vision": {"hidden_act": "gelu"}}),
    "chinese epsilon": ("chinese_clip", {part: {"layer_norm_eps": 0.3} for part in BOTH}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_lost_on_the_way(name, tmp_path):
    kind, settings = LOSSES[name]
    write(tmp_path, kind, **settings)
    compare(tmp_path, kind)


def halve(folder: Path, dtype: torch.dtype) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")


def with_position_ids(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state |= {f"{tower}_model.embeddings.position_ids": torch.arange(17)[None] for tower in BOTH}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def with_settings_twice(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config_dict"] = config.pop("vision_config")
    config["text_config_dict"], config["text_config"] = config["text_config"], {"num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config))


def with_newer_processor(folder: Path) -> None:
    old = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(old.read_text())}))
    old.unlink()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: halve(folder, torch.float16),
        lambda folder: halve(folder, torch.bfloat16),
        as_bin,
        as_shards,
        with_position_ids,
        with_newer_processor,
    ],
    ids=["float16", "bfloat16", "pytorch_model.bin", "shards", "position_ids", "processor_config.json"],
)
def test_every_form_of_a_checkpoint_is_read(kind, change, tmp_path):
    write(tmp_path, kind)
    change(tmp_path)
    compare(tmp_path, kind)


def test_settings_that_are_there_twice_are_read_as_by_transformers(tmp_path):
    write(tmp_path, "clip")
    with_settings_twice(tmp_path)
    compare(tmp_path, "clip")


# Images


IMAGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "clip": ("clip", {}, {"resize_mode": "shortest", "interpolation": "bicubic", "mean": (0.48145466, 0.4578275, 0.40821073)}),
    "bilinear": ("clip", {"resample": 2}, {"interpolation": "bilinear"}),
    "mean": ("clip", {"image_mean": [0.1, 0.2, 0.3]}, {"mean": (0.1, 0.2, 0.3)}),
    "deviation": ("clip", {"image_std": [0.4, 0.5, 0.6]}, {"std": (0.4, 0.5, 0.6)}),
    "squashed": ("clip", {"size": {"height": 32, "width": 32}, "do_center_crop": False}, {"resize_mode": "squash"}),
    "not normalised": ("clip", {"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    "siglip": ("siglip", {}, {"resize_mode": "squash", "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}),
    "siglip2": ("siglip2", {}, {"resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3}),
    "chinese": ("chinese_clip", {}, {"resize_mode": "shortest", "std": (0.26862954, 0.26130258, 0.27577711)}),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_prepared_as_by_transformers(name, tmp_path):
    kind, images, expected = IMAGES[name]
    write(tmp_path, kind, images=images)
    settings = build_network(find_source("ViT-B-32", str(tmp_path))).visual.preprocess_cfg
    assert settings["size"] == (32, 32) and expected.items() <= settings.items()
    if kind == "siglip2":  # keeps the shape of a picture, which a tower of a fixed size cannot
        return
    # An even number of rows to crop: of an odd one, open_clip and transformers round the half in different directions.
    pixels = np.random.default_rng(0).integers(0, 256, (52, 41, 3)).astype(np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt").pixel_values
    ours = prepare(torch.from_numpy(pixels)[None], Preprocess.of(settings))
    grey_levels = (ours - theirs).abs() * torch.tensor(settings["std"])[:, None, None] * 255
    assert grey_levels.max() < 2.01 and (grey_levels > 1.01).float().mean() < 0.01


def test_old_numbers_of_sizes_are_read(tmp_path):
    write(tmp_path, "clip")
    old = {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert read_config(tmp_path).preprocess["resize_mode"] == "shortest"


# Settings


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_leaves_out_has_its_defaults(kind):
    name = KINDS[kind][0]
    for part, ours in zip(("Vision", "Text"), DEFAULTS[kind], strict=True):
        theirs = getattr(transformers, f"{name}{part}Config")().to_dict()
        assert ours == {key: theirs[key] for key in ours}
    processor = getattr(transformers, f"{name}ImageProcessor")().to_dict()
    ours = {key: value for key, value in IMAGE_DEFAULTS[kind].items() if processor.get(key) is not None}
    theirs = {key: processor[key] for key in ours}
    assert json.dumps(ours, default=dict, sort_keys=True) == json.dumps(theirs, default=dict, sort_keys=True)


def test_a_folder_of_the_same_weights_has_the_hash_of_open_clips(tmp_path):
    write(tmp_path / "theirs", "clip", text={"eos_token_id": 2})
    source = find_source("ViT-B-32", str(tmp_path / "theirs"))
    network = build_network(source)
    (tmp_path / "ours").mkdir()
    save_file(network.state_dict(), tmp_path / "ours" / "open_clip_model.safetensors")
    settings = {"model_cfg": dict(source.config), "preprocess_cfg": {}}
    settings["model_cfg"]["text_cfg"] = {**settings["model_cfg"]["text_cfg"], "hf_tokenizer_name": None}
    (tmp_path / "ours" / "open_clip_config.json").write_text(json.dumps(settings))
    assert hash_of_weights(build_network(find_source("any", str(tmp_path / "ours")))) == hash_of_weights(network)


def test_a_moved_folder_is_the_same_model_and_other_sizes_are_another(tmp_path):
    for name, heads in (("a", 4), ("b", 4), ("c", 2)):
        write(tmp_path / name, "siglip", vision={"num_attention_heads": heads})
    first, moved, other = (find_source("any", str(tmp_path / name)).name for name in "abc")
    assert first == moved != other and first.startswith("config ")


def test_clips_own_vocabulary_needs_no_transformers(tmp_path, monkeypatch):
    write(tmp_path, "clip", text={"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407})
    encoder = open_clip.SimpleTokenizer().encoder
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (tmp_path / "vocab.json").write_text(json.dumps({names.get(word, word): number for word, number in encoder.items()}))
    ids = open_clip.SimpleTokenizer()(["a dog runs"])
    theirs = their_features(tmp_path, "clip", torch.zeros(1, 3, 32, 32), ids)[2]
    assert "hf_tokenizer_name" not in find_source("any", str(tmp_path)).config["text_cfg"]
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    encoder = load_encoder(weights=str(tmp_path))
    assert str(tmp_path) not in json.dumps(encoder.fingerprint())
    (sentence,) = encoder.encode_text(["a dog runs"])
    np.testing.assert_allclose(sentence.sentence, torch.nn.functional.normalize(theirs)[0].numpy(), atol=1e-5)
    assert len(sentence.tokens) == 3


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_another_vocabulary_is_that_of_the_folder(file, tmp_path):
    write(tmp_path, "clip", text={"vocab_size": 49408})
    words = {f"word{number}": number for number in range(49408)}
    (tmp_path / file).write_text(json.dumps(words if file == "vocab.json" else {"model": {"vocab": words}}))
    assert find_source("any", str(tmp_path)).config["text_cfg"]["hf_tokenizer_name"] == str(tmp_path)


# Refusals


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path, file: str = "config.json") -> None:
        content = json.loads((folder / file).read_text())
        for name, value in values.items():
            part, _, key = name.rpartition("__")
            (content[part] if part else content)[key] = value
        (folder / file).write_text(json.dumps(content))

    return change


def change_images(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(**values)(folder, "preprocessor_config.json")


def without_a_shard(folder: Path) -> None:
    as_shards(folder)
    sorted(folder.glob("*.safetensors"))[1].unlink()


EARLY: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "another architecture": ("clip", change_config(model_type="blip"), "model type is 'blip', expected one of clip, siglip"),
    "no model type": ("clip", change_config(model_type=None), "model type is None"),
    "no weights": ("clip", lambda f: (f / "model.safetensors").unlink(), "config.json without weights. Put model.safetensors"),
    "no config": ("clip", lambda f: (f / "config.json").unlink(), "model.safetensors without its config"),
    "an empty folder": ("clip", lambda f: [path.unlink() for path in f.iterdir()], "no weights. Expected a folder that"),
    "one shard missing": ("clip", without_a_shard, r"1 of \d files of weights are missing: model-00002-of"),
    "a shard elsewhere": (
        "clip",
        lambda f: (as_shards(f), (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')),
        "1 of 1 files of weights are missing",
    ),
    "no preprocessing": ("siglip", lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    "not JSON": ("clip", lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
    "a list": ("clip", lambda f: (f / "config.json").write_text("[]"), "is not a JSON object"),
    "an activation": ("siglip", change_config(vision_config__hidden_act="relu"), "activation is 'relu', expected one of"),
    "two activations": ("clip", change_config(text_config__hidden_act="gelu"), "different activations, quick_gelu and gelu"),
    "no pooling head": ("siglip", change_config(vision_config__vision_use_head=False), "no pooling head"),
    "a rectangle": ("siglip2", change_config(vision_config__num_patches=12), "12 patches is not a square"),
    "other projections": ("siglip", change_config(text_config__projection_size=8), "projects to 8, its images have 32"),
    "one channel": ("clip", change_config(vision_config__num_channels=1), "1 channels, expected 3"),
    "a word for a size": ("clip", change_config(vision_config__hidden_size="big"), "its settings cannot be read"),
    "no heads": ("clip", change_config(vision_config__num_attention_heads=0), "its settings cannot be read"),
    "another size": ("clip", change_config(vision_config__image_size=64), "resized to .* and cropped to .* takes 64 x 64"),
    "two sizes": ("clip", change_images(size={"shortest_edge": 36}), "its image tower takes 32 x 32"),
    "no crop": ("clip", change_images(do_center_crop=False), "cropped to nothing"),
    "no resize": ("siglip", change_images(do_resize=False), "do_resize false"),
    "lanczos": ("siglip", change_images(resample=1), r"resample 1, expected 2 \(bilinear\)"),
    "no scale": ("siglip", change_images(rescale_factor=1), "rescale_factor is 1, expected 1/255"),
}


@pytest.mark.parametrize("name", EARLY)
def test_an_unusable_folder_is_refused_before_open_clip_is_loaded(name, tmp_path):
    kind, change, answer = EARLY[name]
    write(tmp_path, kind)
    change(tmp_path)
    for refuse in (check_names, find_source):
        with pytest.raises(UsageError, match=answer) as refusal:
            refuse("ViT-B-32", str(tmp_path))
        assert str(refusal.value).startswith(str(tmp_path)) and "\n" not in str(refusal.value)


def test_a_folder_given_in_another_way_is_refused_with_the_right_one(tmp_path):
    write(tmp_path, "clip")
    with pytest.raises(UsageError, match=rf"model\.safetensors: belongs to .* Give the folder as --weights {tmp_path}\.$"):
        check_names("ViT-B-32", str(tmp_path / "model.safetensors"))
    with pytest.raises(UsageError, match=rf"no open_clip model is called .* Give the folder as --weights {tmp_path}\.$"):
        check_names(str(tmp_path), "openai")


def edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return edited


def as_malicious_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(SimpleNamespace()))


LATE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a missing tensor": ("clip", edit(lambda s: s.pop("text_projection.weight")), r"missing \(text_projection.weight\)"),
    "a part of attention": (
        "siglip",
        edit(lambda s: s.pop("vision_model.encoder.layers.1.self_attn.k_proj.bias")),
        r"missing \(vision_model.encoder.layers.1.self_attn.k_proj.bias\)",
    ),
    "no bias": ("siglip", edit(lambda s: s.pop("logit_bias")), r"missing \(logit_bias\)"),
    "an unknown tensor": ("clip", edit(lambda s: s.update(classifier=torch.ones(2))), r"not of this architecture \(classifier\)"),
    "other sizes": ("clip", change_config(vision_config__patch_size=16), "vision_model.embeddings.patch_embedding.weight is"),
    "more layers": ("siglip", change_config(text_config__num_hidden_layers=3), r"missing \(text_model.encoder.layers.2"),
    "fewer layers": ("siglip", change_config(text_config__num_hidden_layers=1), r"not of this architecture \(text_model.encoder"),
    "weights of siglip as clip": ("siglip", change_config(model_type="clip"), "its image tower takes|tensors are missing"),
    "damaged": ("clip", lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99), "open_clip cannot load it"),
    "a program": ("clip", as_malicious_bin, "open_clip cannot load it"),
}


@pytest.mark.parametrize("name", LATE)
def test_tensors_that_do_not_fit_are_refused_by_name(name, tmp_path):
    kind, change, answer = LATE[name]
    write(tmp_path, kind)
    change(tmp_path)
    with pytest.raises(UsageError, match=answer) as refusal:
        build_network(find_source("ViT-B-32", str(tmp_path)))
    assert str(refusal.value).startswith(str(tmp_path)) and "\n" not in str(refusal.value)


def test_chinese_clip_without_transformers_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path, "chinese_clip")
    monkeypatch.setattr(transformers_weights, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'costl\[transformers\]'"):
        build_network(find_source("ViT-B-32", str(tmp_path)))
