"""Tokens of each format are read back as documented: int8 within its bound, layers and frame tokens as CLIP gives them."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_cache import unit_vectors

from costl.commands import main
from costl.pipeline.bench.cache import bench_cache
from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.int8 import _REBIAS, _float16_bits, channel_statistics, dequantise, quantise
from costl.pipeline.cache.merge import merge
from costl.pipeline.cache.pack import pack, unpack
from costl.pipeline.cache.part import parts_folder, write_part
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.options import TokenFormat

CHANNELS, GRID = 8, (2, 3)
tokens_of_any_size = arrays.arrays(
    np.float16,
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=16),
    fill=st.nothing(),
)


def clip_like_tokens(clips: int = 40, *, count: int = 7, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    """Tokens as a ViT gives them: frame tokens and patches have other means, and channels have very different spreads."""
    rng = np.random.default_rng(seed)
    means_of_groups = rng.normal(size=(2, channels)) * [[6], [2]]
    means = means_of_groups[np.minimum(np.arange(count), 1)]
    return (means + rng.normal(size=(clips, count, channels)) * rng.gamma(1, size=channels)).astype(np.float16)


# The arithmetic of int8


@given(tokens_of_any_size)
def test_the_int8_error_is_at_most_half_a_step(tokens):
    mean, std = channel_statistics(tokens)
    quantised, scales = quantise(tokens, mean, std)
    restored = dequantise(quantised, scales, mean, std).astype(np.float64)
    group = np.minimum(np.arange(tokens.shape[1]), len(std) - 1)
    half_a_step = scales[..., None].astype(np.float64) * std[group] / 2
    float16 = np.maximum(np.abs(tokens.astype(np.float64)) * 2.0**-10, 2.0**-24)
    float32 = 1e-5 * (np.abs(tokens.astype(np.float64)) + np.abs(mean[group]))
    assert quantised.dtype == np.int8 and np.isfinite(restored).all()
    assert (np.abs(restored - tokens) <= half_a_step * (1 + 1e-5) + float16 + float32).all()


@given(tokens_of_any_size)
def test_channel_offsets_and_scales_are_mean_and_deviation(tokens):
    mean, std = channel_statistics(tokens)
    groups = [tokens[:, :1], tokens[:, 1:]][: len(mean)]
    for i, group in enumerate(group.reshape(-1, tokens.shape[2]).astype(np.float64) for group in groups):
        # The deviation is a square root of rounding errors of large squares, far below one step of the values.
        np.testing.assert_allclose(mean[i], group.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(std[i], group.std(0), rtol=1e-4, atol=1e-6 * np.abs(group).max())


def test_a_constant_channel_is_restored_exactly():
    tokens = clip_like_tokens()
    tokens[..., 3] = 1234.5
    tokens[:, 0, 5] = 6e-8
    tokens[..., 6] = 0
    mean, std = channel_statistics(tokens)
    restored = dequantise(*quantise(tokens, mean, std), mean, std)
    assert (std[:, 3] == 0).all() and std[0, 5] == 0 and std[1, 5] > 0
    for index in np.s_[..., 3], np.s_[:, 0, 5], np.s_[..., 6]:
        np.testing.assert_array_equal(restored[index], tokens[index])


def test_a_single_frame_is_restored_exactly():
    tokens = clip_like_tokens(1)[:, :1]
    mean, std = channel_statistics(tokens)
    np.testing.assert_array_equal(dequantise(*quantise(tokens, mean, std), mean, std), tokens)


def test_the_largest_values_stay_finite():
    tokens = np.full((3, 2, 2), 65504, np.float16)
    tokens[0, :, 0] = -65504
    tokens[1, :, 1] = 60000
    mean, std = channel_statistics(tokens)
    restored = dequantise(*quantise(tokens, mean, std), mean, std)
    assert np.isfinite(restored).all()
    np.testing.assert_allclose(restored.astype(float), tokens.astype(float), rtol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [0, 39])
def test_values_that_are_not_finite_are_refused(value, clip):
    tokens = clip_like_tokens()
    tokens[clip, 2, 4] = value
    with pytest.raises(VideoError, match="not finite cannot be kept as int8"):
        channel_statistics(tokens)


def test_float16_conversion_equals_numpys_bit_for_bit():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=200_000) * 10.0 ** rng.uniform(-4, 4, 200_000)).astype(np.float32)
    sorted_halves = np.sort(halves).astype(np.float32)
    ties = (sorted_halves[1:] + sorted_halves[:-1]) / 2
    # Below 2^-14 the product itself rounds to float32's last subnormal bits; ties stay exact.
    values = np.concatenate([halves.astype(np.float32), ties, drawn[(abs(drawn) < 65000) & (abs(drawn) >= 2.0**-14)]])
    bits = _float16_bits(values * _REBIAS).astype(np.uint16)
    np.testing.assert_array_equal(bits, values.astype(np.float16).view(np.uint16))


def test_the_int8_error_on_clip_like_tokens_is_below_one_percent():
    tokens = clip_like_tokens(75, count=50, channels=256)
    mean, std = channel_statistics(tokens)
    errors = dequantise(*quantise(tokens, mean, std), mean, std).astype(np.float64) - tokens
    for group in np.s_[:, :1], np.s_[:, 1:]:
        values = tokens[group].astype(np.float64)
        assert np.linalg.norm(errors[group]) < 0.01 * np.linalg.norm(values - values.mean((0, 1)))


# In a cache


def contents(token_format: TokenFormat, grid: tuple[int, int] = GRID) -> Contents:
    joint = JointSpace(width=4, logit_scale=100.0)
    fingerprint = {"model": "tiny", "fps": 0.5, **asdict(token_format)}
    return Contents(fingerprint, 0.5, grid, joint, token_width=CHANNELS, token_format=token_format)


FORMATS = [
    pytest.param(TokenFormat(dtype=dtype, tokens=tokens), id=f"{dtype} {tokens}")
    for dtype in ("float16", "int8")
    for tokens in ("all", "cls")
]


def example_tokens(token_format: TokenFormat) -> np.ndarray:
    count = 7 if token_format.tokens == "all" else 1
    return clip_like_tokens(40, count=count)


def write(path: Path, token_format: TokenFormat) -> CacheReader:
    path.parent.mkdir(exist_ok=True)
    with CacheWriter(path, contents(token_format, GRID if token_format.tokens == "all" else (0, 0)), {}) as writer:
        tokens = example_tokens(token_format)
        joint = unit_vectors(np.random.default_rng(0), 40, 4)
        writer.store("v", tokens=tokens, joint=joint, times_s=np.arange(40) * 2.0, duration_s=80.0, content_hash="of v")
        writer.write_index()
    return CacheReader(path)


@pytest.mark.parametrize("token_format", FORMATS)
def test_each_format_is_read_back_and_verified(tmp_path, token_format):
    reader = write(tmp_path / "feats.h5", token_format)
    reader.verify("v")
    reader.verify("v", quick=True)
    assert reader.contents.token_format == token_format
    tokens = example_tokens(token_format).astype(np.float64)
    restored = reader.tokens("v")
    assert restored.dtype == np.float16 and restored.shape == tokens.shape
    error = np.linalg.norm(restored - tokens) / np.linalg.norm(tokens)
    assert error < 0.01 and (error == 0) == (token_format.dtype == "float16")


@pytest.mark.parametrize("token_format", FORMATS)
@pytest.mark.parametrize("clips", [slice(3, 9), slice(None), range(5, 40), [7, 0, 7], (39,), slice(0)], ids=str)
def test_a_slice_of_clips_equals_that_slice_of_the_video(tmp_path, token_format, clips):
    reader = write(tmp_path / "feats.h5", token_format)
    index = clips if isinstance(clips, slice) else list(clips)
    whole = reader.tokens("v")
    np.testing.assert_array_equal(reader.tokens("v", clips=clips), whole[index])
    np.testing.assert_array_equal(reader.tokens("v", clips=clips, patches=False), whole[index, :1])


def test_only_the_requested_clips_are_restored(tmp_path, monkeypatch):
    from costl.pipeline.cache import part as parts

    sizes: list[tuple[int, ...]] = []
    whole = parts.dequantise
    monkeypatch.setattr(parts, "dequantise", lambda tokens, *more: sizes.append(tokens.shape) or whole(tokens, *more))
    reader = write(tmp_path / "feats.h5", TokenFormat("int8"))
    reader.tokens("v", clips=slice(2, 5))
    reader.tokens("v", patches=False)
    assert sizes == [(3, 7, CHANNELS), (40, 1, CHANNELS)]


@pytest.mark.parametrize("token_format", FORMATS)
def test_the_same_tokens_give_the_same_bytes(tmp_path, token_format):
    parts = [write(tmp_path / name / "feats.h5", token_format).part_path("v").read_bytes() for name in ("a", "b")]
    assert parts[0] == parts[1]


def test_tokens_are_stored_page_aligned(tmp_path):
    shape = (40, 50, 64)
    example = ExampleRow(shape)
    for dtype in ("float16", "int8"):
        path = tmp_path / f"{dtype}.h5"
        write_part(path, example.row, "f", dtype=dtype, tokens=np.zeros(shape, np.float16), times_s=example.times_s)
        with h5py.File(path) as file:
            tokens = file["tokens"]
            assert tokens.chunks is None and tokens.id.get_offset() % 4096 == 0
            assert tokens.dtype == dtype and tokens.shape == shape


class ExampleRow:
    """The row and times of a part."""

    def __init__(self, shape: tuple[int, ...]):
        from costl.pipeline.cache.index import VideoRow

        self.row = VideoRow("v", "ok", "v", part="v.h5", clips=shape[0], duration_s=2.0 * shape[0])
        self.times_s = np.arange(shape[0]) * 2.0


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.promise(8)
def test_the_tokens_of_a_long_video_are_never_all_in_memory(tmp_path, dtype):
    shape = (2000, 50, 256)  # 51 MB
    tokens = np.memmap(tmp_path / "tokens", np.float16, "w+", shape=shape)
    example = ExampleRow(shape)
    tracemalloc.start()
    try:
        write_part(tmp_path / "v.h5", example.row, "f", dtype=dtype, tokens=tokens, times_s=example.times_s)
        assert tracemalloc.get_traced_memory()[1] < 25e6
    finally:
        tracemalloc.stop()


# Damage


def change(reader: CacheReader, name: str, value: float) -> None:
    with h5py.File(reader.part_path("v"), "r+") as file:
        file[name][0, 0] = value


@pytest.mark.parametrize(
    ("name", "value"), [("scales", np.nan), ("scales", -1), ("mean", np.inf), ("std", -0.5), ("std", np.nan)]
)
def test_invalid_scales_are_refused_and_the_video_is_extracted_again(tmp_path, name, value):
    reader = write(tmp_path / "feats.h5", TokenFormat("int8"))
    change(reader, name, value)
    with pytest.raises(CacheError, match="damaged scales"):
        reader.tokens("v")
    with CacheWriter(reader.path, reader.contents, {}) as writer:
        assert writer.reuse_if_unchanged("v", "of v") is None


@pytest.mark.parametrize("name", ["tokens", "scales", "mean", "std", "joint"])
def test_the_checksum_covers_everything_that_is_stored(tmp_path, name):
    reader = write(tmp_path / "feats.h5", TokenFormat("int8"))
    reader.verify("v")
    change(reader, name, 1.5 if name != "tokens" else 99)
    with pytest.raises(CacheError, match="its content has changed"):
        reader.verify("v")


@pytest.mark.parametrize("name", ["scales", "mean"])
def test_a_part_without_one_of_its_datasets_is_refused(tmp_path, name):
    reader = write(tmp_path / "feats.h5", TokenFormat("int8"))
    with h5py.File(reader.part_path("v"), "r+") as file:
        del file[name]
    with pytest.raises(CacheError, match=f"expected data under '{name}', found nothing"):
        reader.verify("v")


# Old caches with more than one layer of CLIP


def add_layer(reader: CacheReader) -> None:
    """Gives the only part of a cache a second layer, as `costl extract --layers 2` did."""
    path = reader.part_path("v")
    names = ["tokens"] if reader.contents.token_format.dtype == "float16" else ["tokens", "scales", "mean", "std"]
    with h5py.File(path, "r+") as file:
        for name in names:
            file[f"{name}-2"] = file[name][()] // 2
        stored = [file[name] for name in (*names, *(f"{name}-2" for name in names), "joint", "times_s")]
        checksum = hashlib.sha256(b"".join(array[()].tobytes() for array in stored)).hexdigest()
        file.attrs["checksum"] = np.bytes_(checksum)
    with h5py.File(reader.path, "r+") as file:
        rows = file["rows"][()].replace(reader.row("v").checksum.encode(), checksum.encode())
        del file["rows"]
        file["rows"] = np.bytes_(rows)


@pytest.mark.parametrize("token_format", FORMATS)
def test_the_last_layer_of_an_old_part_is_read_and_all_are_verified(tmp_path, token_format):
    tokens = write(tmp_path / "feats.h5", token_format).tokens("v").copy()
    add_layer(CacheReader(tmp_path / "feats.h5"))
    reader = CacheReader(tmp_path / "feats.h5")
    np.testing.assert_array_equal(reader.tokens("v"), tokens)
    assert verify(reader.path).damaged == ()
    packed = pack(reader.path, out=tmp_path / "packed.h5")
    np.testing.assert_array_equal(CacheReader(packed).tokens("v"), tokens)
    unpack(packed, out=tmp_path / "out" / "feats.h5")
    merge(tmp_path / "merged.h5", [tmp_path / "out" / "feats.h5"])
    np.testing.assert_array_equal(CacheReader(tmp_path / "merged.h5").tokens("v"), tokens)
    change(reader, "tokens-2", 99)
    with pytest.raises(CacheError, match="its content has changed"):
        reader.verify("v")


@pytest.mark.parametrize("token_format", FORMATS)
def test_a_truncated_part_is_detected_by_the_quick_check(tmp_path, token_format):
    reader = write(tmp_path / "feats.h5", token_format)
    part = reader.part_path("v")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CacheError, match="bytes, expected"):
        reader.verify("v", quick=True)


def test_tokens_that_cannot_be_stored_leave_no_part(tmp_path):
    with CacheWriter(tmp_path / "feats.h5", contents(TokenFormat("int8")), {}) as writer:
        tokens = clip_like_tokens()
        tokens[3, 1, 2] = np.inf
        with pytest.raises(VideoError, match="not finite"):
            joint = np.zeros((40, 4), np.float16)
            writer.store("v", tokens=tokens, joint=joint, times_s=np.arange(40) * 2.0, duration_s=80.0, content_hash="")
    assert not list(parts_folder(tmp_path / "feats.h5").glob("*.h5"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (TokenFormat("int8"), 'dtype: cache has "?float16"?, asked for "?int8'),
        (TokenFormat(layers=2), "layers: cache has 1, asked for 2"),
    ],
)
def test_a_cache_in_another_token_format_is_refused(tmp_path, changed, sentence):
    write(tmp_path / "feats.h5", TokenFormat())
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
def test_an_invalid_token_format_is_refused_wherever_it_is_given(tmp_path, values, sentence):
    with pytest.raises(UsageError, match=sentence):
        TokenFormat(**values)
    reader = write(tmp_path / "feats.h5", TokenFormat())
    with h5py.File(reader.path, "r+") as file:
        features = json.loads(file["features"][()]) | values
        del file["features"]
        hdf5.put_text(file, "features", json.dumps(features))
    with pytest.raises(CacheError, match=sentence):
        CacheReader(reader.path)


def test_an_old_cache_without_format_fields_is_float16_of_one_layer(tmp_path):
    reader = write(tmp_path / "feats.h5", TokenFormat())
    with h5py.File(reader.path, "r+") as file:
        features = json.loads(file["features"][()])
        del file["features"]
        hdf5.put_text(
            file, "features", json.dumps({k: v for k, v in features.items() if k not in ("dtype", "layers", "tokens")})
        )
    reader = CacheReader(reader.path)
    assert reader.contents.token_format == TokenFormat() == TokenFormat.from_fields({"fps": 0.5})
    np.testing.assert_array_equal(reader.tokens("v"), example_tokens(TokenFormat()))


# The measurement


def test_the_cache_bench_measures_each_format_and_cleans_up(tmp_path):
    reader = write(tmp_path / "home" / "feats.h5", TokenFormat())
    (tmp_path / "work").mkdir()
    header, _, *rows, source, int8 = bench_cache(cache=reader.path, videos=5, folder=tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
    columns = ["MB/s of float16 tokens", "plain files", "float16", "ratio", "int8", "ratio"]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == columns
    assert rows[0].startswith("| write ") and rows[-1].startswith("| next reads, warm ") and source.startswith("1 videos")
    assert all(float(cell) >= 0 for row in rows for cell in row.split("|")[2:-1])
    exact = example_tokens(TokenFormat()).astype(np.float64)
    error = write(tmp_path / "int8" / "feats.h5", TokenFormat("int8")).tokens("v") - exact
    assert f"error {np.linalg.norm(error) / np.linalg.norm(exact):.2%}." in int8


def test_a_cache_bench_without_videos_or_folder_is_refused(tmp_path):
    for wrong in ({"videos": 0}, {"repeats": 0}):
        with pytest.raises(UsageError, match="expected at least one of each"):
            bench_cache(folder=tmp_path, **wrong)
    done = CliRunner().invoke(main, ["bench", "cache", "--folder", str(tmp_path / "nowhere")])
    assert done.exit_code == 2 and "nowhere" in done.stderr
