"""The cache holds open_clip's own tokens of its frames, with each decoder, sampling, batch size, dtype and resize."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
from numbered_videos import frame_times, make_video, variable_frame_times
from PIL import Image
from tiny_clip import PREPROCESS, VISION, write_clip_weights

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import resolve
from costl.pipeline.errors import UsageError
from costl.pipeline.extract import extract

FPS = 2.0
# Relative L2 of all tokens. float16 rounds at 0.0003, the resize rounds one pixel in ten thousand otherwise; int8 as
# docs/cache-format.md says; the decoder's own scaling is another filter.
FLOAT16, INT8, SCALED = 0.001, 0.006, 0.05
BATCHES = (1, 5, 16)
# Half of the pairs with each sampling: every decoder meets all of them.
DTYPES = {"centre": ("float16", "int8", "float16"), "cheapest": ("int8", "float16", "int8")}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    write_clip_weights(folder / "clip")
    (folder / "videos").mkdir()
    make_video(folder / "videos" / "even.mp4", frame_times(90), size=(96, 128), options={"bf": "3", "g": "25"})
    make_video(folder / "videos" / "uneven.mp4", variable_frame_times(40), size=(128, 80))
    return folder


@pytest.fixture(scope="module")
def network(home):
    return open_clip.create_model(f"local-dir:{home / 'clip'}").eval()


def skip_unless_available(name: str) -> str:
    try:
        return resolve(name)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
@pytest.mark.parametrize("sampling", DTYPES)
@pytest.mark.promise(7)
def test_tokens_equal_open_clips(home, network, tmp_path, decoder, sampling, report_figure):
    skip_unless_available(decoder)
    largest_error = dict[str, float]()
    for batch, dtype in zip(BATCHES, DTYPES[sampling], strict=True):
        out = tmp_path / f"{batch}-{dtype}.h5"
        errors = token_errors(
            home, out, network, decoder=decoder, sampling=sampling, batch=batch, dtype=dtype
        )
        assert max(errors.values()) < (FLOAT16 if dtype == "float16" else INT8), (batch, dtype, errors)
        largest_error[dtype] = max(largest_error.get(dtype, 0), *errors.values())
    listed = ", ".join(f"{value:.2%} in {dtype}" for dtype, value in largest_error.items())
    report_figure(
        f"{decoder}, {sampling}: from open_clip's own tokens of the same frames by {listed} at most, in batches of 1, 5, 16"
    )


@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
def test_frames_that_the_decoder_scales_give_nearly_the_same_tokens(home, network, tmp_path, decoder):
    skip_unless_available(decoder)
    errors = token_errors(home, tmp_path / "feats.h5", network, decoder=decoder, resize="decoder")
    assert max(errors.values()) < SCALED


def token_errors(home: Path, out: Path, network, **options) -> dict[str, float]:
    """The relative error of each video's tokens, compared with open_clip and PIL on the frames at the cache's times."""
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
    assert np.abs(starts[nearest] - cache.times_s(name)).max() < 1e-3, "the times in the cache are times of frames"
    images = torch.stack([_prepared(frames[index][1]) for index in nearest])
    with torch.inference_mode():
        output = network.visual.forward_intermediates(images, indices=1, output_fmt="NLC", output_extra_tokens=True)
    expected = torch.cat([output["image_intermediates_prefix"][-1], output["image_intermediates"][-1]], 1).numpy()
    ours = cache.tokens(name).astype(np.float32)
    assert ours.shape == expected.shape
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


def _prepared(picture: np.ndarray) -> torch.Tensor:
    settings = open_clip.transform.PreprocessCfg(size=VISION["image_size"], **PREPROCESS)
    return open_clip.transform.image_transform_v2(settings, is_train=False)(Image.fromarray(picture))
