"""Our tokens equal open_clip's, wherever the weights come from; wrong input is refused with a clear message."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import warnings

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from open_clip import pretrained as tags
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import model_config, write_clip_weights

from costl.pipeline.encode import weights
from costl.pipeline.encode.clip import load_encoder, load_encoders
from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.errors import CostlError, UsageError

QUERIES = ["a dog runs", "the red ball, again"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(weights=str(folder))


@pytest.fixture(scope="module")
def reference(folder):
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return network.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def frames(count: int = 3, height: int = 90, width: int = 161) -> np.ndarray:
    """Sharp edges, slopes and noise: everything a resize can get wrong."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    stripes = ((x // 3 + y // 5) % 2 * 255)[None, :, :, None]
    noise = rng.integers(0, 256, (count, height, width, 3))
    return np.where(rng.random((count, height, width, 1)) < 0.5, stripes, noise).astype(np.uint8)


def images(pixels: np.ndarray, transform) -> torch.Tensor:
    return torch.stack([transform(Image.fromarray(frame)) for frame in pixels])


# Images


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("target", [32, (40, 24)], ids=["square", "rectangle"])
@pytest.mark.parametrize(
    "size", [(90, 161), (97, 51), (64, 64), (20, 25), (31, 500)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_images_are_preprocessed_as_by_pil(mode, interpolation, target, size):
    settings = PreprocessCfg(size=target, resize_mode=mode, interpolation=interpolation, fill_color=7)
    pixels = frames(2, *size)
    transform = image_transform_v2(settings, is_train=False)
    if mode == "squash":  # width before height in any version of Pillow
        to_height, to_width = Preprocess.of(vars(settings)).size
        kernel = Image.Resampling[interpolation.upper()]
        narrow = [Image.fromarray(frame).resize((to_width, size[0]), kernel) for frame in pixels]
        theirs = torch.stack([transform(frame.resize((to_width, to_height), kernel)) for frame in narrow])
    else:
        theirs = images(pixels, transform)
    ours = prepare(torch.from_numpy(pixels), Preprocess.of(vars(settings)))
    grey_levels = (ours - theirs).abs() * torch.tensor(settings.std)[:, None, None] * 255
    assert ours.shape == theirs.shape
    # The two sum in a different order, so that a value may lie on the other side of a half; bilinear has many halves.
    assert grey_levels.max() < 1.01
    assert (grey_levels > 0.01).float().mean() < (1e-3 if interpolation == "bicubic" else 0.025)


def test_an_unknown_resize_is_refused():
    with pytest.raises(UsageError, match="resize mode 'stretch'"):
        Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode="stretch")


# Tokens


def test_the_joint_vector_of_a_frame_is_clips_own_image_feature(encoder, reference):
    network, transform, _ = reference
    pixels = frames()
    tokens, joint = encoder.encode(pixels)
    with torch.inference_mode():
        theirs = network.encode_image(images(pixels, transform), normalize=True).numpy()
    assert tokens.shape == (3, 17, 64) and joint.shape == (3, 32) and tokens.dtype == joint.dtype == np.float16
    np.testing.assert_allclose(joint.astype(np.float32), theirs, atol=2e-3)  # float16 and one grey level


def test_the_patches_are_those_of_the_last_block_before_the_norm(encoder, reference):
    network, transform, _ = reference
    network.visual.output_tokens = True
    try:
        with torch.inference_mode():
            _, normed = network.visual(images(frames(), transform))
    finally:
        network.visual.output_tokens = False
    with torch.inference_mode():
        ours = network.visual.ln_post(torch.from_numpy(encoder.encode(frames()).tokens[:, 1:].astype(np.float32)))
    torch.testing.assert_close(ours, normed, atol=1e-2, rtol=0)


@pytest.mark.promise(7)
def test_the_batch_does_not_change_a_token(encoder):
    pixels = frames(7)
    one_by_one = np.concatenate([encoder.encode(pixels[i : i + 1]).tokens for i in range(7)])
    np.testing.assert_allclose(encoder.encode(pixels).tokens.astype(np.float32), one_by_one, atol=4e-3)


def test_read_only_and_sliced_frames_are_accepted(encoder):
    pixels = frames(4)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode(pixels[::2]).tokens, encoder.encode(pixels[::2].copy()).tokens)


def test_frame_tokens_without_patches_equal_those_with_patches(encoder, folder):
    without_patches = load_encoder(weights=str(folder), patches=False)
    np.testing.assert_array_equal(without_patches.encode(frames()).tokens, encoder.encode(frames()).tokens[:, :1])
    assert without_patches.patch_grid == (0, 0)


def test_the_attributes_of_the_encoder_are_right(encoder, folder):
    assert (encoder.patch_grid, encoder.width, encoder.image_size) == ((4, 4), 64, (32, 32))
    assert (encoder.joint.width, encoder.joint.logit_bias) == (32, 0.0)
    assert encoder.joint.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    fingerprint = encoder.fingerprint()
    assert fingerprint.keys() == {"model", "weights", "preprocess", "precision", "open_clip"}
    assert str(folder) not in json.dumps(fingerprint), "a moved folder must not look like other weights"


def test_a_mean_pooled_tower_gives_the_mean_as_its_frame_token(tmp_path):
    encoder = load_encoder(weights=str(write_clip_weights(tmp_path, pool_type="avg", final_ln_after_pool=True)))
    tokens = encoder.encode(frames()).tokens.astype(np.float32)
    np.testing.assert_allclose(tokens[:, 0], tokens[:, 1:].mean(1), atol=4e-3)


@pytest.mark.promise(7)
def test_tokens_that_do_not_fit_into_float16_are_refused(tmp_path):
    state = load_file(write_clip_weights(tmp_path) / "open_clip_model.safetensors")
    state["visual.transformer.resblocks.1.mlp.c_proj.bias"][3] = 1e6
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CostlError, match="visual tokens do not fit into float16"):
        load_encoder(weights=str(tmp_path)).encode(frames())


def test_non_finite_weights_are_refused(tmp_path):
    state = load_file(write_clip_weights(tmp_path) / "open_clip_model.safetensors")
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CostlError, match="not finite"):
        load_encoder(weights=str(tmp_path))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_tokens_are_close_to_float32(folder, encoder, precision):
    half = load_encoder(weights=str(folder), precision=precision)
    cosine = (half.encode(frames()).joint.astype(np.float32) * encoder.encode(frames()).joint).sum(axis=1)
    assert cosine.min() > 0.999
    assert half.fingerprint() != encoder.fingerprint()


# Sentences


def test_sentence_and_word_tokens_equal_open_clips(encoder, reference):
    network, _, tokenizer = reference
    with torch.inference_mode():
        ids = tokenizer(QUERIES)
        theirs = network.encode_text(ids, normalize=True).numpy()
        raw = network.forward_intermediates(text=ids, text_indices=1)["text_intermediates"][0]
        both = torch.cat([network.token_embedding(ids), raw], dim=-1).numpy()
    for i, words in enumerate(encoder.encode_text(QUERIES)):
        count = len(tokenizer.encode(QUERIES[i]))
        np.testing.assert_allclose(words.sentence, theirs[i], atol=1e-5)
        np.testing.assert_array_equal(words.tokens, both[i, 1 : 1 + count].astype(np.float16))
        assert not words.truncated


def test_a_sentence_does_not_depend_on_its_neighbours(encoder):
    together = encoder.encode_text([f"{QUERIES[0]} {n}" for n in range(70)])
    [single] = encoder.encode_text([f"{QUERIES[0]} 66"])
    np.testing.assert_allclose(together[66].sentence, single.sentence, atol=1e-5)


def test_a_sentence_longer_than_the_context_is_marked_as_truncated(encoder):
    longest, too_long = encoder.encode_text(["dog " * 14, "dog " * 15])
    assert (len(longest.tokens), longest.truncated) == (14, False)
    assert (len(too_long.tokens), too_long.truncated) == (14, True)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_a_sentence_without_a_word_is_refused(encoder, text):
    with pytest.raises(UsageError, match="no word in it"):
        encoder.encode_text(["a dog", text])


# Where weights come from


@pytest.fixture
def known(monkeypatch, tmp_path):
    """Adds a small model to open_clip, with one tag trained like OpenAI's and another like open_clip's own."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny", model_config())
    openai = tags._pcfg(hf_hub="unknown/vit-tiny/", url="https://nowhere.invalid/0123abcd/vit-tiny.pt", quick_gelu=True)
    plain = tags._slpcfg(hf_hub="unknown/vit-tiny-plain/")
    monkeypatch.setitem(tags._PRETRAINED, "ViT-tiny", {"openai": openai, "plain_b8k": plain})
    return load_file(write_clip_weights(tmp_path / "source") / "open_clip_model.safetensors")


def feature(encoder, pixels) -> np.ndarray:
    return encoder.encode(pixels).joint.astype(np.float32)


def their_feature(path, pixels, **settings) -> np.ndarray:
    network, _, transform = open_clip.create_model_and_transforms("ViT-tiny", pretrained=str(path), **settings)
    with torch.inference_mode():
        return network.eval().encode_image(images(pixels, transform), normalize=True).numpy()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_weights_file_gets_the_settings_of_its_tag(known, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(known, path) if suffix == ".safetensors" else torch.save(known, path)
    encoder = load_encoder("ViT-tiny", str(path))
    theirs = their_feature(path, frames(), force_quick_gelu=True)
    assert encoder.name == "ViT-tiny-quickgelu"
    np.testing.assert_allclose(feature(encoder, frames()), theirs, atol=1e-3)
    assert np.abs(theirs - their_feature(path, frames())).max() > 3e-3, "the test must see the difference"


@pytest.mark.parametrize("ask", ["plain_b8k={}/weights.pt", "{}/vit-plain-b8k.pt"])
def test_a_tag_in_or_before_the_file_name_decides_the_settings(known, tmp_path, ask):
    for name in ("weights.pt", "vit-plain-b8k.pt"):
        torch.save(known, tmp_path / name)
    encoder = load_encoder("ViT-tiny", ask.format(tmp_path))
    settings = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_resize_mode": "squash"}
    theirs = their_feature(tmp_path / "weights.pt", frames(), **settings)
    assert encoder.name == "ViT-tiny"
    assert encoder.preprocess.resize_mode == "squash"
    np.testing.assert_allclose(feature(encoder, frames()), theirs, atol=2e-3)


def test_the_same_weights_have_the_same_hash_in_any_file(known, tmp_path):
    torch.save(known, tmp_path / "a.pt")
    save_file(known, tmp_path / "b.safetensors")
    fingerprints = [load_encoder("ViT-tiny", str(tmp_path / name)).fingerprint() for name in ("a.pt", "b.safetensors")]
    assert fingerprints[0] == fingerprints[1]
    known["visual.proj"][0, 0] += 0.01
    torch.save(known, tmp_path / "a.pt")
    assert load_encoder("ViT-tiny", str(tmp_path / "a.pt")).weights_hash != fingerprints[0]["weights"]


@pytest.mark.promise(18)
def test_a_tag_that_is_on_this_disk_needs_no_network(known, tmp_path, monkeypatch):
    save_file(known, tmp_path / "open_clip_model.safetensors")
    cached = {("unknown/vit-tiny", "open_clip_model.safetensors"): str(tmp_path / "open_clip_model.safetensors")}
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: cached.get(key))
    monkeypatch.setattr(weights, "_reachable", lambda address: pytest.fail("used the network"))
    encoder = load_encoder("ViT-tiny", "openai")
    theirs = their_feature(tmp_path / "open_clip_model.safetensors", frames(), force_quick_gelu=True)
    np.testing.assert_allclose(feature(encoder, frames()), theirs, atol=2e-3)


def test_a_tag_without_network_is_refused_at_once(known, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: None)
    monkeypatch.setattr(weights.socket, "create_connection", unreachable)
    monkeypatch.setattr(weights.tags, "download_pretrained", lambda *_: pytest.fail("tried to download"))
    start_s = time.monotonic()
    with pytest.raises(UsageError, match=r"'openai' are not on this disk and huggingface\.co cannot be reached"):
        load_encoder("ViT-tiny", "openai")
    assert time.monotonic() - start_s < 1


def test_the_offline_setting_prevents_any_connection(known, monkeypatch):
    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: None)
    monkeypatch.setattr(weights, "_reachable", lambda address: pytest.fail("used the network"))
    with pytest.raises(UsageError, match="not on this disk"):
        load_encoder("ViT-tiny", "openai")


@pytest.mark.parametrize(
    ("model", "ask", "answer"),
    [
        ("ViT-B32", "openai", "no open_clip model is called 'ViT-B32'. Did you mean ViT-B-32"),
        ("vit-b-32", "openai", "Did you mean ViT-B-32"),
        ("ViT-B-32", "opena", "no weights called 'opena'. Did you mean openai"),
        ("ViT-B-32", "laion2b_s34b_b97k", "Did you mean laion2b_s34b_b79k"),
        ("ViT-B-32", "missing/w.pt", "no such weights file"),
        ("ViT-B-32", "opena={}", "no weights called 'opena'"),
        ("ViT-B-32", "{}", "weights end in .safetensors"),
    ],
)
def test_the_error_for_a_wrong_name_suggests_the_nearest(tmp_path, model, ask, answer):
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    if "=" in ask:
        text = text.rename(tmp_path / "notes.pt")
    with pytest.raises(UsageError, match=answer):
        load_encoder(model, ask.format(text))


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "open_clip_model.safetensors without its config"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "not a readable open_clip config"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "no open_clip_model.safetensors next to"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"x" * 64), "cannot load it"),
    ],
    ids=["no config", "empty config", "no weights", "damaged weights"],
)
def test_an_incomplete_or_damaged_weights_folder_is_refused(tmp_path, change, answer):
    change(write_clip_weights(tmp_path))
    with pytest.raises(UsageError, match=answer):
        load_encoder(weights=str(tmp_path))


def test_weights_of_another_architecture_are_refused(known, tmp_path):
    del known["visual.proj"]
    torch.save(known, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="Check that model and weights belong together"):
        load_encoder("ViT-tiny", str(tmp_path / "w.pt"))


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["zip", "old"]
)
@pytest.mark.promise(9)
def test_a_pickle_that_would_run_code_is_refused_without_running_it(known, tmp_path, save):
    save({"state_dict": RunsCode(str(tmp_path / "ran"))}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="cannot load it"):
        load_encoder("ViT-tiny", str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


class Weights(torch.nn.Module):
    """A program that carries the tensors of a network under their own names, as OpenAI's archives do."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            *parents, leaf = name.split(".")
            module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.register_buffer(leaf, tensor)

    def forward(self, x):
        return x


@pytest.fixture
def program(known, tmp_path):
    path = tmp_path / "vit-tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Weights(known), torch.zeros(1)), str(path))
    return path


def test_an_unpublished_torchscript_program_is_refused(program):
    with pytest.raises(UsageError, match="not the one OpenAI published"):
        load_encoder("ViT-tiny", str(program))


def test_the_archive_that_openai_published_is_loaded(program, known, tmp_path, monkeypatch):
    published = f"https://nowhere.invalid/{hashlib.sha256(program.read_bytes()).hexdigest()}/vit-tiny.pt"
    settings = tags._pcfg(url=published, quick_gelu=True)
    monkeypatch.setitem(tags._PRETRAINED, "ViT-tiny", {"openai": settings})
    save_file(known, tmp_path / "same.safetensors")
    archive, plain = (load_encoder("ViT-tiny", str(path)) for path in (program, tmp_path / "same.safetensors"))
    assert archive.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "warp"])
def test_an_unavailable_device_is_refused(folder, device):
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used here"):
        load_encoder(weights=str(folder), device=device)


def test_an_unknown_precision_is_refused(folder):
    with pytest.raises(UsageError, match="precision 'fp8'"):
        load_encoder(weights=str(folder), precision="fp8")


def test_every_word_token_has_its_text(encoder):
    (words,) = encoder.encode_text(["A Skateboarder's naïve dog, 犬"])
    assert len(words.texts) == len(words.tokens)
    assert words.texts[:4] == ("a ", "skate", "boarder ", "'s ")
    assert all(words.texts)


def test_a_copy_on_another_device_gives_the_same_tokens(tmp_path):
    first, second = load_encoders("ViT-B-32", str(write_clip_weights(tmp_path / "clip")), devices="cpu,cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    np.testing.assert_array_equal(first.encode(pixels).tokens, second.encode(pixels).tokens)
    assert first.fingerprint() == second.fingerprint() and first._network is not second._network


def test_started_batches_can_be_fetched_later_in_any_order(tmp_path):
    encoder = load_encoder(weights=str(write_clip_weights(tmp_path / "clip")))
    images = [encoder.prepare(np.full((2, 32, 32, 3), grey, dtype=np.uint8)) for grey in (10, 200)]
    fetches = [encoder.start(batch) for batch in images]
    for batch, fetch in reversed(list(zip(images, fetches, strict=True))):
        for ours, expected in zip(fetch(), encoder.encode_images(batch), strict=True):
            np.testing.assert_array_equal(ours, expected)
