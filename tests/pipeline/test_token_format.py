"""Tokens come back from every form as it promises: int8 within its bound, layers and frame tokens as CLIP gives them."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_clip import write_clip

from costl.pipeline.bench.cache import bench_cache
from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.int8 import _REBIAS, _half, channels_of, quantise, restore
from costl.pipeline.cache.part import parts_folder, write_part
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.clip import load_clip
from costl.pipeline.encode.types import Joint
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.options import Form, form_in

CHANNELS, GRID = 8, (2, 3)
tokens_of_any_size = arrays.arrays(
    np.float16,
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=16),
    fill=st.nothing(),
)


def like_clips(clips: int = 40, *, count: int = 7, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    """Frame tokens and patches in different places, channels of very different spread: what a ViT makes."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(2, channels)) * [[6], [2]]
    where = places[np.minimum(np.arange(count), 1)]
    return (where + rng.normal(size=(clips, count, channels)) * rng.gamma(1, size=channels)).astype(np.float16)


# The arithmetic of int8


@settings(max_examples=300)
@given(tokens_of_any_size)
def test_no_value_comes_back_further_away_than_half_a_step(tokens):
    mean, std = channels_of(tokens)
    quantised, scales = quantise(tokens, mean, std)
    found = restore(quantised, scales, mean, std).astype(np.float64)
    group = np.minimum(np.arange(tokens.shape[1]), len(std) - 1)
    half_a_step = scales[..., None].astype(np.float64) * std[group] / 2
    float16 = np.maximum(np.abs(tokens.astype(np.float64)) * 2.0**-10, 2.0**-24)
    float32 = 1e-5 * (np.abs(tokens.astype(np.float64)) + np.abs(mean[group]))
    assert quantised.dtype == np.int8 and np.isfinite(found).all()
    assert (np.abs(found - tokens) <= half_a_step * (1 + 1e-5) + float16 + float32).all()


@given(tokens_of_any_size)
def test_the_channels_have_the_mean_and_deviation_of_their_values(tokens):
    mean, std = channels_of(tokens)
    groups = [tokens[:, :1], tokens[:, 1:]][: len(mean)]
    for i, group in enumerate(group.reshape(-1, tokens.shape[2]).astype(np.float64) for group in groups):
        # The square root of what doubles leave over of large squares is far below a step of the values themselves.
        np.testing.assert_allclose(mean[i], group.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(std[i], group.std(0), rtol=1e-4, atol=1e-6 * np.abs(group).max())


def test_a_channel_that_never_changes_comes_back_exactly():
    tokens = like_clips()
    tokens[..., 3], tokens[:, 0, 5], tokens[..., 6] = 1234.5, 6e-8, 0
    mean, std = channels_of(tokens)
    found = restore(*quantise(tokens, mean, std), mean, std)
    assert (std[:, 3] == 0).all() and std[0, 5] == 0 and std[1, 5] > 0
    for place in np.s_[..., 3], np.s_[:, 0, 5], np.s_[..., 6]:
        np.testing.assert_array_equal(found[place], tokens[place])


def test_a_single_frame_comes_back_exactly():
    tokens = like_clips(1)[:, :1]
    mean, std = channels_of(tokens)
    np.testing.assert_array_equal(restore(*quantise(tokens, mean, std), mean, std), tokens)


def test_the_largest_values_stay_finite():
    tokens = np.full((3, 2, 2), 65504, np.float16)
    tokens[0, :, 0], tokens[1, :, 1] = -65504, 60000
    mean, std = channels_of(tokens)
    found = restore(*quantise(tokens, mean, std), mean, std)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.astype(float), tokens.astype(float), rtol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [0, 39])
def test_values_that_are_not_finite_are_refused(value, clip):
    tokens = like_clips()
    tokens[clip, 2, 4] = value
    with pytest.raises(VideoError, match="not finite cannot be kept as int8"):
        channels_of(tokens)


def test_our_float16_is_numpys_bit_for_bit():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=200_000) * 10.0 ** rng.uniform(-4, 4, 200_000)).astype(np.float32)
    sorted_halves = np.sort(halves).astype(np.float32)
    ties = (sorted_halves[1:] + sorted_halves[:-1]) / 2
    # Below 2^-14 the product itself rounds to float32's last subnormal bits; ties stay exact.
    values = np.concatenate([halves.astype(np.float32), ties, drawn[(abs(drawn) < 65000) & (abs(drawn) >= 2.0**-14)]])
    found = _half(values * _REBIAS).astype(np.uint16)
    np.testing.assert_array_equal(found, values.astype(np.float16).view(np.uint16))


def test_on_tokens_like_clips_the_error_is_below_a_hundredth_of_what_a_token_has_of_its_own():
    tokens = like_clips(75, count=50, channels=256)
    mean, std = channels_of(tokens)
    off = restore(*quantise(tokens, mean, std), mean, std).astype(np.float64) - tokens
    own = [part - part.mean((0, 1)) for part in (tokens[:, :1].astype(np.float64), tokens[:, 1:].astype(np.float64))]
    for part, values in ((off[:, :1], own[0]), (off[:, 1:], own[1])):
        assert np.linalg.norm(part) < 0.01 * np.linalg.norm(values)


# In a cache


def contents(form: Form, grid: tuple[int, int] = GRID) -> Contents:
    ones = np.ones(CHANNELS, np.float32)
    joint = Joint(ones, ones * 0, 1e-5, np.eye(CHANNELS, dtype=np.float32), 100.0)
    fingerprint = {"model": "tiny", "fps": 0.5, **asdict(form)}
    return Contents(fingerprint=fingerprint, fps=0.5, patch_grid=grid, joint=joint, form=form)


FORMS = [
    pytest.param(Form(dtype, layers, tokens), id=f"{dtype} {layers} {tokens}")
    for dtype in ("float16", "int8")
    for layers in (1, 3)
    for tokens in ("all", "cls")
]


def stored(form: Form) -> np.ndarray:
    count = 7 if form.tokens == "all" else 1
    tokens = np.stack([like_clips(40, count=count, seed=layer) for layer in range(form.layers)], axis=1)
    return tokens if form.layers > 1 else tokens[:, 0]


def write(path: Path, form: Form) -> CacheReader:
    path.parent.mkdir(exist_ok=True)
    with CacheWriter(path, contents(form, GRID if form.tokens == "all" else (0, 0)), {}) as writer:
        tokens = stored(form)
        writer.store("v", tokens=tokens, times_s=np.arange(40) * 2.0, duration_s=80.0, content_hash="of v")
        writer.write_index()
    return CacheReader(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_back_layer_by_layer_whole_and_verified(tmp_path, form):
    reader = write(tmp_path / "feats.h5", form)
    reader.verify("v")
    reader.verify("v", quick=True)
    assert reader.contents.form == form
    tokens = stored(form).reshape(40, form.layers, -1, CHANNELS).astype(np.float64)
    for layer in range(-1, -form.layers - 1, -1):
        found = reader.tokens("v", layer=layer)
        assert found.dtype == np.float16 and found.shape == tokens[:, layer].shape
        off = np.linalg.norm(found - tokens[:, layer]) / np.linalg.norm(tokens[:, layer])
        assert off < 0.01 and (off == 0) == (form.dtype == "float16")
    np.testing.assert_array_equal(reader.tokens("v"), reader.tokens("v", layer=-1))
    for layer in (0, 1, -form.layers - 1):
        with pytest.raises(CacheError, match=rf"no layer {layer}, the last {form.layers} are kept"):
            reader.tokens("v", layer=layer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clips", [slice(3, 9), slice(None), range(5, 40), [7, 0, 7], (39,), slice(0)], ids=str)
def test_a_part_of_the_video_is_that_part_of_the_whole(tmp_path, form, clips):
    reader = write(tmp_path / "feats.h5", form)
    index = clips if isinstance(clips, slice) else list(clips)
    for layer in (-1, -form.layers):
        whole = reader.tokens("v", layer=layer)
        np.testing.assert_array_equal(reader.tokens("v", clips=clips, layer=layer), whole[index])
        np.testing.assert_array_equal(reader.tokens("v", clips=clips, patches=False, layer=layer), whole[index, :1])


def test_only_the_clips_asked_for_are_computed(tmp_path, monkeypatch):
    from costl.pipeline.cache import part as parts

    sizes: list[tuple[int, ...]] = []
    whole = parts.restore
    monkeypatch.setattr(parts, "restore", lambda tokens, *more: sizes.append(tokens.shape) or whole(tokens, *more))
    reader = write(tmp_path / "feats.h5", Form("int8"))
    reader.tokens("v", clips=slice(2, 5))
    reader.tokens("v", patches=False)
    assert sizes == [(3, 7, CHANNELS), (40, 1, CHANNELS)]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_tokens_give_the_same_bytes(tmp_path, form):
    parts = [write(tmp_path / name / "feats.h5", form).part_path("v").read_bytes() for name in ("a", "b")]
    assert parts[0] == parts[1]


def test_layers_lie_apart_in_whole_pages_and_the_last_one_has_the_name_it_has_alone(tmp_path):
    shape = (40, 3, 50, 64)
    about = CacheReaderRow(shape)
    for dtype in ("float16", "int8"):
        path = tmp_path / f"{dtype}.h5"
        write_part(path, about.row, "f", form=Form(dtype, 3), tokens=np.zeros(shape, np.float16), times_s=about.times_s)
        with h5py.File(path) as file:
            for name in ("tokens", "tokens-2", "tokens-3"):
                assert file[name].chunks is None and file[name].id.get_offset() % 4096 == 0
                assert file[name].dtype == dtype and file[name].shape == (40, 50, 64)


class CacheReaderRow:
    """What a part says besides its tokens."""

    def __init__(self, shape: tuple[int, ...]):
        from costl.pipeline.cache.index import VideoRow

        self.row = VideoRow("v", "ok", "v", part="v.h5", clips=shape[0], duration_s=2.0 * shape[0])
        self.times_s = np.arange(shape[0]) * 2.0


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.promise(8)
def test_a_long_videos_tokens_are_never_in_memory_as_a_whole(tmp_path, dtype):
    shape = (2000, 1, 50, 256)  # 51 MB
    tokens = np.memmap(tmp_path / "tokens", np.float16, "w+", shape=shape)
    about = CacheReaderRow(shape)
    tracemalloc.start()
    try:
        write_part(tmp_path / "v.h5", about.row, "f", form=Form(dtype), tokens=tokens, times_s=about.times_s)
        assert tracemalloc.get_traced_memory()[1] < 25e6
    finally:
        tracemalloc.stop()


# Damage


def change(reader: CacheReader, name: str, value: float) -> None:
    with h5py.File(reader.part_path("v"), "r+") as file:
        file[name][0, 0] = value


@pytest.mark.parametrize(
    ("name", "value"),
    [("scales", np.nan), ("scales", -1), ("mean", np.inf), ("std", -0.5), ("std", np.nan), ("scales-2", np.inf)],
)
def test_scales_that_cannot_be_are_refused_and_made_again(tmp_path, name, value):
    reader = write(tmp_path / "feats.h5", Form("int8", 2))
    change(reader, name, value)
    with pytest.raises(CacheError, match="damaged scales"):
        reader.tokens("v", layer=-2 if name.endswith("-2") else -1)
    with CacheWriter(reader.path, reader.contents, {}) as writer:
        assert writer.keep("v", "of v") is None


@pytest.mark.parametrize("name", ["tokens", "tokens-2", "scales", "mean", "std-2"])
def test_the_checksum_covers_everything_that_is_stored(tmp_path, name):
    reader = write(tmp_path / "feats.h5", Form("int8", 2))
    reader.verify("v")
    change(reader, name, 1.5 if "tokens" not in name else 99)
    with pytest.raises(CacheError, match="its content has changed"):
        reader.verify("v")


@pytest.mark.parametrize("name", ["scales", "mean", "tokens-2"])
def test_a_part_that_lacks_a_piece_is_refused(tmp_path, name):
    reader = write(tmp_path / "feats.h5", Form("int8", 2))
    with h5py.File(reader.part_path("v"), "r+") as file:
        del file[name]
    with pytest.raises(CacheError, match=f"expected data under '{name}', found nothing"):
        reader.verify("v")


@pytest.mark.parametrize("form", FORMS)
def test_a_part_cut_short_is_found_at_a_glance(tmp_path, form):
    reader = write(tmp_path / "feats.h5", form)
    part = reader.part_path("v")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CacheError, match="bytes, expected"):
        reader.verify("v", quick=True)


def test_tokens_that_cannot_be_kept_leave_no_part(tmp_path):
    with CacheWriter(tmp_path / "feats.h5", contents(Form("int8")), {}) as writer:
        tokens = like_clips()
        tokens[3, 1, 2] = np.inf
        with pytest.raises(VideoError, match="not finite"):
            writer.store("v", tokens=tokens, times_s=np.arange(40) * 2.0, duration_s=80.0, content_hash="")
    assert not list(parts_folder(tmp_path / "feats.h5").glob("*.h5"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (Form("int8"), 'dtype: cache has "?float16"?, asked for "?int8'),
        (Form(layers=2), "layers: cache has 1, asked for 2"),
    ],
)
def test_another_form_is_another_cache(tmp_path, changed, sentence):
    write(tmp_path / "feats.h5", Form())
    with pytest.raises(CacheError, match=sentence), CacheWriter(tmp_path / "feats.h5", contents(changed), {}):
        pass


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"dtype": "int4"}, "dtype is 'int4', expected float16 or int8"),
        ({"layers": 0}, "layers is 0, expected how many"),
        ({"layers": True}, "layers is True"),
        ({"tokens": "some"}, "tokens is 'some', expected all or cls"),
    ],
)
def test_a_form_that_cannot_be_meant_is_refused_wherever_it_stands(tmp_path, values, sentence):
    with pytest.raises(UsageError, match=sentence):
        Form(**values)
    reader = write(tmp_path / "feats.h5", Form())
    with h5py.File(reader.path, "r+") as file:
        features = json.loads(file["features"][()]) | values
        del file["features"]
        hdf5.put_text(file, "features", json.dumps(features))
    with pytest.raises(CacheError, match=sentence):
        CacheReader(reader.path)


def test_a_cache_from_before_there_was_a_choice_is_whole_float16_of_one_layer(tmp_path):
    reader = write(tmp_path / "feats.h5", Form())
    with h5py.File(reader.path, "r+") as file:
        features = json.loads(file["features"][()])
        del file["features"]
        hdf5.put_text(
            file, "features", json.dumps({k: v for k, v in features.items() if k not in ("dtype", "layers", "tokens")})
        )
    found = CacheReader(reader.path)
    assert found.contents.form == Form() == form_in({"fps": 0.5})
    np.testing.assert_array_equal(found.tokens("v"), stored(Form()))


# What CLIP gives


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clip"), **{"layers": 4}))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (5, 40, 52, 3), dtype=np.uint8)


def test_layers_are_what_open_clip_itself_gives_and_the_last_is_what_it_is_alone(weights, pictures):
    clip, alone = load_clip(weights=weights, layers=3), load_clip(weights=weights)
    found = clip.tokens(pictures)
    assert found.shape == (5, 3, 17, 64)
    np.testing.assert_array_equal(found[:, -1], alone.tokens(pictures))
    network, *_ = open_clip.create_model_and_transforms(f"local-dir:{weights}")
    with torch.inference_mode():
        output = network.eval().visual.forward_intermediates(
            alone.prepare(pictures), indices=[1, 2, 3], output_fmt="NLC", output_extra_tokens=True
        )
    for layer, (prefix, patches) in enumerate(
        zip(output["image_intermediates_prefix"], output["image_intermediates"], strict=True)
    ):
        np.testing.assert_array_equal(found[:, layer], torch.cat([prefix, patches], 1).to(torch.float16).numpy())
    assert not np.array_equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("layers", [1, 2])
def test_frame_tokens_alone_are_those_of_the_whole(weights, pictures, layers):
    bare = load_clip(weights=weights, layers=layers, patches=False)
    whole = load_clip(weights=weights, layers=layers).tokens(pictures)
    np.testing.assert_array_equal(bare.tokens(pictures), whole[..., :1, :])
    assert bare.patch_grid == (0, 0)


def test_more_layers_than_there_are_blocks_are_refused(weights):
    assert load_clip(weights=weights, layers=4).tokens(np.zeros((1, 32, 32, 3), np.uint8)).shape[1] == 4
    with pytest.raises(UsageError, match=r"has 4 blocks, asked for the last 5. Choose --layers 4 or less"):
        load_clip(weights=weights, layers=5)


# The measurement


def test_the_bench_measures_every_way_and_leaves_nothing(tmp_path):
    reader = write(tmp_path / "home" / "feats.h5", Form())
    (tmp_path / "work").mkdir()
    found = bench_cache(cache=reader.path, videos=5, rounds=2, folder=tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
    whats = [pace.what for pace in found.paces]
    assert whats[:2] == ["write float16", "write int8"] and "read int8, warm, first" in whats and found.videos == 1
    assert all(pace.ours > 0 and pace.plain > 0 for pace in found.paces) and found.look_up_ms > 0
    true = stored(Form()).astype(np.float64)
    off = write(tmp_path / "int8" / "feats.h5", Form("int8")).tokens("v") - true
    assert found.int8.all == pytest.approx(np.linalg.norm(off) / np.linalg.norm(true))
    own = true[:, 0] - true[:, 0].mean(0)
    assert found.int8.own == pytest.approx(np.linalg.norm(off[:, 0]) / np.linalg.norm(own), rel=1e-3)
    assert all(pace.what in "\n".join(found.lines()) for pace in found.paces)


@pytest.mark.parametrize("wrong", [{"videos": 0}, {"rounds": 0}])
def test_a_bench_of_nothing_and_nowhere_is_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="expected at least one of each"):
        bench_cache(folder=tmp_path, **wrong)
    with pytest.raises(UsageError, match="nowhere: cannot be written"):
        bench_cache(folder=tmp_path / "nowhere")
