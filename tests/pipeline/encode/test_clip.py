"""Our tokens are open_clip's own, whatever the weights come from; what cannot be right is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import threading
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
from tiny_clip import model_config, write_clip

from costl.pipeline.encode import clip as clip_module
from costl.pipeline.encode import weights
from costl.pipeline.encode.clip import load_clip, load_clips
from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.errors import CostlError, UsageError

QUERIES = ["a dog runs", "the red ball, again"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(weights=str(folder))


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


# Pictures


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("target", [32, (40, 24)], ids=["square", "rectangle"])
@pytest.mark.parametrize(
    "size", [(90, 161), (97, 51), (64, 64), (20, 25), (31, 500)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_pictures_are_prepared_as_pil_would(mode, interpolation, target, size):
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


def test_the_projected_frame_token_is_clips_own_image_feature(clip, reference):
    network, transform, _ = reference
    pixels = frames()
    tokens = clip.tokens(pixels)
    with torch.inference_mode():
        theirs = network.encode_image(images(pixels, transform), normalize=True).numpy()
    assert tokens.shape == (3, 17, 64) and tokens.dtype == np.float16
    np.testing.assert_allclose(clip.joint.project(tokens[:, 0]), theirs, atol=2e-3)  # float16 and one grey level


def test_the_patches_are_those_of_the_last_block_before_the_norm(clip, reference):
    network, transform, _ = reference
    network.visual.output_tokens = True
    try:
        with torch.inference_mode():
            _, normed = network.visual(images(frames(), transform))
    finally:
        network.visual.output_tokens = False
    joint = clip.joint
    ours = torch.nn.functional.layer_norm(
        torch.from_numpy(clip.tokens(frames())[:, 1:].astype(np.float32)),
        (64,),
        torch.from_numpy(joint.norm_weight),
        torch.from_numpy(joint.norm_bias),
        joint.norm_eps,
    )
    torch.testing.assert_close(ours, normed, atol=1e-2, rtol=0)


@pytest.mark.promise(7)
def test_the_batch_does_not_change_a_token(clip):
    pixels = frames(7)
    one_by_one = np.concatenate([clip.tokens(pixels[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(clip.tokens(pixels).astype(np.float32), one_by_one, atol=4e-3)


def test_read_only_and_sliced_frames_are_taken_as_they_are(clip):
    pixels = frames(4)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(clip.tokens(pixels[::2]), clip.tokens(pixels[::2].copy()))


def test_what_describes_the_network_is_right(clip, folder):
    assert (clip.patch_grid, clip.width, clip.image_size) == ((4, 4), 64, (32, 32))
    assert clip.joint.projection.shape == (64, 32)
    assert clip.joint.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    fingerprint = clip.fingerprint()
    assert fingerprint.keys() == {"model", "weights", "preprocess", "precision", "open_clip"}
    assert str(folder) not in json.dumps(fingerprint), "a moved folder must not look like other weights"


def test_a_mean_pooled_tower_gives_the_mean_as_its_frame_token(tmp_path):
    mean_pooled = write_clip(tmp_path, pool_type="avg", final_ln_after_pool=True)
    clip = load_clip(weights=str(mean_pooled))
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{mean_pooled}")
    with torch.inference_mode():
        theirs = network.eval().encode_image(images(frames(), transform), normalize=True).numpy()
    np.testing.assert_allclose(clip.joint.project(clip.tokens(frames())[:, 0]), theirs, atol=2e-3)


@pytest.mark.parametrize(
    "vision",
    [{"attentional_pool": True, "attn_pooler_heads": 4}, {"pool_type": "avg"}, {"layers": [1, 1, 1, 1]}],
    ids=["attention pool", "norm before the mean", "convolutions"],
)
def test_a_tower_without_such_a_token_is_refused(tmp_path, vision):
    with pytest.raises(UsageError, match="not a norm and a projection of one token"):
        load_clip(weights=str(write_clip(tmp_path, **vision)))


@pytest.mark.promise(7)
def test_values_that_do_not_fit_are_refused(tmp_path):
    state = load_file(write_clip(tmp_path) / "open_clip_model.safetensors")
    state["visual.transformer.resblocks.1.mlp.c_proj.bias"][3] = 1e6
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CostlError, match="visual tokens do not fit into float16"):
        load_clip(weights=str(tmp_path)).tokens(frames())


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    state = load_file(write_clip(tmp_path) / "open_clip_model.safetensors")
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CostlError, match="not finite"):
        load_clip(weights=str(tmp_path))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_close(folder, clip, precision):
    half = load_clip(weights=str(folder), precision=precision)
    close = half.joint.project(half.tokens(frames())[:, 0]) * clip.joint.project(clip.tokens(frames())[:, 0])
    assert close.sum(axis=1).min() > 0.999
    assert half.fingerprint() != clip.fingerprint()


# Sentences


def test_sentences_and_words_are_clips_own(clip, reference):
    network, _, tokenizer = reference
    with torch.inference_mode():
        ids = tokenizer(QUERIES)
        theirs = network.encode_text(ids, normalize=True).numpy()
        raw = network.forward_intermediates(text=ids, text_indices=1)["text_intermediates"][0]
        both = torch.cat([network.token_embedding(ids), raw], dim=-1).numpy()
    for i, words in enumerate(clip.encode_text(QUERIES)):
        count = len(tokenizer.encode(QUERIES[i]))
        np.testing.assert_allclose(words.sentence, theirs[i], atol=1e-5)
        np.testing.assert_array_equal(words.tokens, both[i, 1 : 1 + count].astype(np.float16))
        assert not words.truncated


def test_a_sentence_does_not_depend_on_its_neighbours(clip):
    together = clip.encode_text([f"{QUERIES[0]} {n}" for n in range(70)])
    [alone] = clip.encode_text([f"{QUERIES[0]} 66"])
    np.testing.assert_allclose(together[66].sentence, alone.sentence, atol=1e-5)


def test_a_sentence_longer_than_the_context_says_so(clip):
    just, over = clip.encode_text(["dog " * 14, "dog " * 15])
    assert (len(just.tokens), just.truncated) == (14, False)
    assert (len(over.tokens), over.truncated) == (14, True)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_a_sentence_without_a_word_is_refused(clip, text):
    with pytest.raises(UsageError, match="no word in it"):
        clip.encode_text(["a dog", text])


# Where weights come from


@pytest.fixture
def known(monkeypatch, tmp_path):
    """open_clip knows a small model: one tag trained as OpenAI's were, the other in open_clip's plain way."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny", model_config())
    openai = tags._pcfg(hf_hub="nobody/vit-tiny/", url="https://nowhere.invalid/0123abcd/vit-tiny.pt", quick_gelu=True)
    plain = tags._slpcfg(hf_hub="nobody/vit-tiny-plain/")
    monkeypatch.setitem(tags._PRETRAINED, "ViT-tiny", {"openai": openai, "plain_b8k": plain})
    return load_file(write_clip(tmp_path / "source") / "open_clip_model.safetensors")


def feature(clip, pixels) -> np.ndarray:
    return clip.joint.project(clip.tokens(pixels)[:, 0])


def their_feature(path, pixels, **settings) -> np.ndarray:
    network, _, transform = open_clip.create_model_and_transforms("ViT-tiny", pretrained=str(path), **settings)
    with torch.inference_mode():
        return network.eval().encode_image(images(pixels, transform), normalize=True).numpy()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_keeps_what_its_tag_would_bring(known, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(known, path) if suffix == ".safetensors" else torch.save(known, path)
    clip = load_clip("ViT-tiny", str(path))
    theirs = their_feature(path, frames(), force_quick_gelu=True)
    assert clip.name == "ViT-tiny-quickgelu"
    np.testing.assert_allclose(feature(clip, frames()), theirs, atol=1e-3)
    assert np.abs(theirs - their_feature(path, frames())).max() > 3e-3, "the test must see the difference"


@pytest.mark.parametrize("ask", ["plain_b8k={}/weights.pt", "{}/vit-plain-b8k.pt"])
def test_a_tag_in_or_before_the_file_name_decides(known, tmp_path, ask):
    for name in ("weights.pt", "vit-plain-b8k.pt"):
        torch.save(known, tmp_path / name)
    clip = load_clip("ViT-tiny", ask.format(tmp_path))
    settings = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_resize_mode": "squash"}
    theirs = their_feature(tmp_path / "weights.pt", frames(), **settings)
    assert clip.name == "ViT-tiny"
    assert clip.preprocess.resize_mode == "squash"
    np.testing.assert_allclose(feature(clip, frames()), theirs, atol=2e-3)


def test_the_same_weights_have_the_same_hash_wherever_they_lie(known, tmp_path):
    torch.save(known, tmp_path / "a.pt")
    save_file(known, tmp_path / "b.safetensors")
    fingerprints = [load_clip("ViT-tiny", str(tmp_path / name)).fingerprint() for name in ("a.pt", "b.safetensors")]
    assert fingerprints[0] == fingerprints[1]
    known["visual.proj"][0, 0] += 0.01
    torch.save(known, tmp_path / "a.pt")
    assert load_clip("ViT-tiny", str(tmp_path / "a.pt")).weights_hash != fingerprints[0]["weights"]


@pytest.mark.promise(18)
def test_a_tag_that_is_on_this_disk_needs_no_network(known, tmp_path, monkeypatch):
    save_file(known, tmp_path / "open_clip_model.safetensors")
    found = {("nobody/vit-tiny", "open_clip_model.safetensors"): str(tmp_path / "open_clip_model.safetensors")}
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: found.get(key))
    monkeypatch.setattr(weights, "_reachable", lambda address: pytest.fail("looked for the network"))
    clip = load_clip("ViT-tiny", "openai")
    theirs = their_feature(tmp_path / "open_clip_model.safetensors", frames(), force_quick_gelu=True)
    np.testing.assert_allclose(feature(clip, frames()), theirs, atol=2e-3)


def test_a_tag_without_network_is_refused_at_once(known, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: None)
    monkeypatch.setattr(weights.socket, "create_connection", unreachable)
    monkeypatch.setattr(weights.tags, "download_pretrained", lambda *_: pytest.fail("tried to download"))
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"'openai' are not on this disk and huggingface\.co cannot be reached"):
        load_clip("ViT-tiny", "openai")
    assert time.monotonic() - begun < 1


def test_a_name_server_that_never_answers_does_not_hold_us_up(known, monkeypatch):
    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_PROBE_S", 0.1)
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: None)
    monkeypatch.setattr(weights.socket, "create_connection", lambda *_, **__: threading.Event().wait())
    with pytest.raises(UsageError, match="cannot be reached"):
        load_clip("ViT-tiny", "openai")


def test_a_machine_told_to_stay_offline_does_not_even_try(known, monkeypatch):
    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *key: None)
    monkeypatch.setattr(weights, "_reachable", lambda address: pytest.fail("looked for the network"))
    with pytest.raises(UsageError, match="not on this disk"):
        load_clip("ViT-tiny", "openai")


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
def test_a_wrong_name_is_answered_with_the_nearest(tmp_path, model, ask, answer):
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    if "=" in ask:
        text = text.rename(tmp_path / "notes.pt")
    with pytest.raises(UsageError, match=answer):
        load_clip(model, ask.format(text))


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "not a readable open_clip config"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "not a readable open_clip config"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "no open_clip_model.safetensors beside"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"x" * 64), "cannot load it"),
    ],
    ids=["no config", "empty config", "no weights", "damaged weights"],
)
def test_a_folder_that_lacks_something_is_refused(tmp_path, change, answer):
    change(write_clip(tmp_path))
    with pytest.raises(UsageError, match=answer):
        load_clip(weights=str(tmp_path))


def test_weights_of_another_architecture_are_refused(known, tmp_path):
    del known["visual.proj"]
    torch.save(known, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="Check that model and weights belong together"):
        load_clip("ViT-tiny", str(tmp_path / "w.pt"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["zip", "old"]
)
@pytest.mark.promise(9)
def test_a_pickle_that_would_run_code_is_refused_and_does_not(known, tmp_path, save):
    save({"state_dict": Bomb(str(tmp_path / "ran"))}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="cannot load it"):
        load_clip("ViT-tiny", str(tmp_path / "w.pt"))
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


def test_a_program_that_nobody_published_is_refused(program):
    with pytest.raises(UsageError, match="not the one OpenAI published"):
        load_clip("ViT-tiny", str(program))


def test_the_archive_openai_published_is_read(program, known, tmp_path, monkeypatch):
    published = f"https://nowhere.invalid/{hashlib.sha256(program.read_bytes()).hexdigest()}/vit-tiny.pt"
    settings = tags._pcfg(url=published, quick_gelu=True)
    monkeypatch.setitem(tags._PRETRAINED, "ViT-tiny", {"openai": settings})
    save_file(known, tmp_path / "same.safetensors")
    archive, plain = (load_clip("ViT-tiny", str(path)) for path in (program, tmp_path / "same.safetensors"))
    assert archive.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "warp"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used here"):
        load_clip(weights=str(folder), device=device)


def test_an_unknown_precision_is_refused(folder):
    with pytest.raises(UsageError, match="precision 'fp8'"):
        load_clip(weights=str(folder), precision="fp8")


def test_every_word_token_has_its_text(clip):
    (words,) = clip.encode_text(["A Skateboarder's naïve dog, 犬"])
    assert len(words.texts) == len(words.tokens)
    assert words.texts[:4] == ("a ", "skate", "boarder ", "'s ")
    assert all(words.texts)


def pretend_gpus(monkeypatch):
    """As if this machine had two GPUs."""
    places = {"cuda": "cuda:0", "cuda:0": "cuda:0", "cuda:1": "cuda:1", "cpu": "cpu"}
    monkeypatch.setattr(clip_module, "pick_device", lambda name: torch.device(places[name]))


@pytest.mark.parametrize(
    ("devices", "precision", "answer"),
    [
        ("cuda,cuda:0", None, "cuda is named twice, as cuda:0"),
        ("cuda:1, cuda:0,cuda:1", "fp16", "cuda:1 is named twice"),
        ("cpu,cuda:0", None, r"cpu in fp32, cuda in fp16; .* --precision fp32"),
    ],
)
def test_devices_that_do_not_go_together_are_refused(monkeypatch, devices, precision, answer):
    pretend_gpus(monkeypatch)
    with pytest.raises(UsageError, match=answer):
        load_clips("ViT-B-32", "openai", devices=devices, precision=precision)


def test_the_same_network_on_a_further_device_gives_the_same_tokens(tmp_path):
    first, second = load_clips("ViT-B-32", str(write_clip(tmp_path / "clip")), devices="cpu,cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    np.testing.assert_array_equal(first.tokens(pixels), second.tokens(pixels))
    assert first.fingerprint() == second.fingerprint() and first._network is not second._network


def test_what_was_begun_can_be_fetched_later_and_in_any_order(tmp_path):
    clip = load_clip(weights=str(write_clip(tmp_path / "clip")))
    images = [clip.prepare(np.full((2, 32, 32, 3), grey, dtype=np.uint8)) for grey in (10, 200)]
    begun = [clip.start(some) for some in images]
    for some, fetch in reversed(list(zip(images, begun, strict=True))):
        np.testing.assert_array_equal(fetch(), clip.encode_images(some))
