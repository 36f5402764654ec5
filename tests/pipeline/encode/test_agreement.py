"""Whatever the decoder, sampling, batch, dtype and resize: the cache holds open_clip's own tokens of the frames it names."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
import videos as clips
from PIL import Image
from tiny_clip import PREPROCESS, VISION, write_clip

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import resolve
from costl.pipeline.errors import UsageError
from costl.pipeline.extract import extract

FPS = 2.0
# Relative L2 of all tokens. float16 rounds at 0.0003, the resize rounds one pixel in ten thousand otherwise; int8 as
# docs/cache-format.md says; the decoder's own scaling is another filter.
FLOAT16, INT8, SCALED = 0.001, 0.006, 0.05


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    write_clip(folder / "clip")
    (folder / "videos").mkdir()
    clips.make_clip(folder / "videos" / "even.mp4", clips.steady(90), size=(96, 128), options={"bf": "3", "g": "25"})
    clips.make_clip(folder / "videos" / "uneven.mp4", clips.uneven(40), size=(128, 80))
    return folder


@pytest.fixture(scope="module")
def network(home):
    return open_clip.create_model(f"local-dir:{home / 'clip'}").eval()


def here(name: str) -> str:
    try:
        return resolve(name)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
@pytest.mark.parametrize("sampling", ["centre", "cheapest"])
@pytest.mark.promise(7)
def test_tokens_are_open_clips_own(home, network, tmp_path, decoder, sampling, tell):
    here(decoder)
    apart = dict[str, float]()
    for batch, dtype in itertools.product((1, 5, 16), ("float16", "int8")):
        out, asked = tmp_path / f"{batch}-{dtype}.h5", {"batch": batch, "dtype": dtype}
        found = tokens_of(home, out, network, decoder=decoder, sampling=sampling, **asked)
        assert max(found.values()) < (FLOAT16 if dtype == "float16" else INT8), (asked, found)
        apart[dtype] = max(apart.get(dtype, 0), *found.values())
    told = ", ".join(f"{value:.2%} in {dtype}" for dtype, value in apart.items())
    tell(
        f"{decoder}, {sampling}: from open_clip's own tokens of the same frames by {told} at most, in batches of 1, 5, 16"
    )


@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
def test_frames_that_the_decoder_scales_give_nearly_the_same_tokens(home, network, tmp_path, decoder):
    here(decoder)
    found = tokens_of(home, tmp_path / "feats.h5", network, decoder=decoder, resize="decoder")
    assert max(found.values()) < SCALED


def tokens_of(home: Path, out: Path, network, **options) -> dict[str, float]:
    """Each video's error beside the tokens of its frames at the times that the cache tells, by open_clip and PIL alone."""
    extract(
        home / "videos",
        out=out,
        annotations={},
        weights=str(home / "clip"),
        fps=FPS,
        device="cpu",
        workers=1,
        **options,
    )
    cache = CacheReader(out)
    assert cache.video_ids == ["even", "uneven"]
    return {name: _error(cache, name, home / "videos" / f"{name}.mp4", network) for name in cache.video_ids}


def _error(cache: CacheReader, name: str, path: Path, network) -> float:
    with av.open(str(path)) as container:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    starts = np.array([time for time, _ in frames]) - frames[0][0]
    nearest = [int(np.abs(starts - time).argmin()) for time in cache.times_s(name)]
    assert np.abs(starts[nearest] - cache.times_s(name)).max() < 1e-3, "the times told are times of frames"
    images = torch.stack([_prepared(frames[index][1]) for index in nearest])
    with torch.inference_mode():
        found = network.visual.forward_intermediates(images, indices=1, output_fmt="NLC", output_extra_tokens=True)
    expected = torch.cat([found["image_intermediates_prefix"][-1], found["image_intermediates"][-1]], 1).numpy()
    ours = cache.tokens(name).astype(np.float32)
    assert ours.shape == expected.shape
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


def _prepared(picture: np.ndarray) -> torch.Tensor:
    settings = open_clip.transform.PreprocessCfg(size=VISION["image_size"], **PREPROCESS)
    return open_clip.transform.image_transform_v2(settings, is_train=False)(Image.fromarray(picture))
