"""Tokens of real videos equal those of open_clip for the frames that PyAV shows at the same times."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import open_video
from costl.pipeline.errors import VideoError
from costl.pipeline.extract import extract
from costl.pipeline.options import FrameOptions

REAL_VIDEOS = Path(__file__).parents[3] / "../shared/data/videos"
NAMES = ("vid1.mp4", "vid2.mp4", "flipping_a_pancake.mkv", "v_GGSY1Qvo990.mp4")
TOLERANCE = 2e-3  # relative L2 of tokens: float16 storage, and one pixel in a thousand is rounded differently

pytestmark = pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason="the folder of real videos is missing")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """ViT-B-32 with QuickGELU, as its OpenAI weights need it, with random weights: no download."""
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32-quickgelu").eval()


@pytest.fixture(scope="module")
def cache(network, tmp_path_factory) -> CacheReader:
    folder = tmp_path_factory.mktemp("real")
    save_file(network.state_dict(), folder / "ViT-B-32-openai.safetensors")
    videos = folder / "videos"
    videos.mkdir()
    for name in NAMES:
        shutil.copy(REAL_VIDEOS / name, videos)
    row = {"qid": 1, "query": "a pancake is flipped", "vid": "flipping_a_pancake", "duration": 10}
    (videos / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    weights = str(folder / "ViT-B-32-openai.safetensors")
    report = extract(videos, out=folder / "feats.h5", model="ViT-B-32", weights=weights, fps=0.25, device="cpu")
    assert report.exit_code == 0
    return CacheReader(report.cache)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_real_videos_equal_those_of_open_clip(network, cache, name):
    vid = Path(name).stem
    pictures = on_screen(REAL_VIDEOS / name, cache.grid(vid).centres_s())
    prepare = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    images = torch.stack([prepare(Image.fromarray(picture)) for picture in pictures])
    with torch.inference_mode():
        output = network.visual.forward_intermediates(
            images, indices=1, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
        )
        pooled = network.encode_image(images, normalize=True).numpy()
    prefix, patches = output["image_intermediates_prefix"][-1], output["image_intermediates"][-1]
    expected = torch.cat([prefix, patches], dim=1).numpy()
    tokens = cache.tokens(vid).astype(np.float32)
    assert tokens.shape == expected.shape
    assert np.linalg.norm(tokens - expected) / np.linalg.norm(expected) < TOLERANCE
    np.testing.assert_allclose(cache.joint_vectors(vid), pooled, atol=TOLERANCE)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_damaged_real_video_is_refused_where_its_frames_are_lost(decoder):
    path = REAL_VIDEOS / "corrupted.mp4"  # 5 s; the packet of 2.8 s is damaged, and the frames after it refer to it
    with open_video(path, FrameOptions(decoder)) as video, pytest.raises(VideoError, match=r"corrupted\.mp4: damaged"):
        list(video.sample([1.0, 3.0, 5.0]))
    with open_video(path, FrameOptions("pyav")) as video:
        assert len(next(iter(video.sample([1.0, 2.0]))).times_s) == 2 and video.repaired == 0


def on_screen(path: Path, times_s: np.ndarray) -> list[np.ndarray]:
    """The picture that a player shows at each time, with the first at time 0; PyAV decodes every frame."""
    with av.open(str(path)) as container:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    starts = np.array([time for time, _ in frames])
    visible = starts >= min(0.0, starts[-1])
    starts = starts[visible]
    pictures = [picture for (_, picture), is_visible in zip(frames, visible, strict=True) if is_visible]
    return [pictures[max(0, np.searchsorted(starts, t + starts[0] + 1e-6, side="right") - 1)] for t in times_s]
