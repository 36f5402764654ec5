"""Trains costl-tiny, the small CLIP that comes with the project, on rendered frames and their captions, and checks it.

    python tools/train_tiny_clip.py --out pipeline/world/costl-tiny
    python tools/train_tiny_clip.py --out pipeline/world/costl-tiny --check

A GPU takes five minutes with the defaults. On two cores use --scenes 20000 --batch 256 --seconds 7200. `--check` only
measures the weights that are there.

Captions name objects and their attributes in single frames, as captions on the web do. They never name positions, relations
and motions: the queries of the sample world are about these, and CoSTL must learn them.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from joblib import Parallel, delayed
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.world.render import PlacedThing, Thing, draw, random_diameter, random_thing, texture
from costl.pipeline.world.write_world import TINY_CLIP

CONFIG = "open_clip_config.json"
SIDE, CONTEXT, CAPTIONS = 160, 32, 8
SCENES_AT_ONCE = 800
HELD_OUT_SEED = 1_000_003
LEARNING_RATE, WARMUP_STEPS = 1.5e-3, 400
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture with {}",
    "here is {}",
    "{} on a textured ground",
    "look , {}",
    "a frame with {}",
)
Scene = list[PlacedThing]


def random_scene(rng: np.random.Generator) -> Scene:
    """One to seven objects without overlap, many of which differ in one attribute only."""
    placed: Scene = []
    base = astuple(random_thing(rng))
    for _ in range(rng.integers(1, 8)):
        attributes = list(astuple(random_thing(rng)))
        if rng.random() < 0.5:
            for i in rng.permutation(3)[:2]:
                attributes[i] = base[i]
        thing = Thing(*attributes)
        for _ in range(20):
            x, y = rng.uniform(0.06, 0.94, 2)
            if all(math.hypot(x - p.x, y - p.y) > 0.13 for p in placed):
                placed.append(PlacedThing(thing, float(x), float(y), random_diameter(rng, thing)))
                break
    return placed


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """Names one to four of the objects, each with some of its attributes."""
    named = rng.permutation(len(scene))[: rng.integers(1, min(4, len(scene)) + 1)]
    parts = []
    for i in named:
        thing = scene[i].thing
        words = [thing.size] * (rng.random() < 0.75) + [thing.colour] * (rng.random() < 0.92) + [thing.shape]
        parts.append(f"{rng.choice(['a', 'the', 'one'])} " + " ".join(words))
    joined = parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]
    return str(rng.choice(TEMPLATES)).format(joined)


def noisy_ids(text: str, tokenizer: SimpleTokenizer, rng: np.random.Generator) -> np.ndarray:
    """The token ids of a caption, int64 [context], with random tokens now and then, like noise in captions on the web."""
    ids: list[int] = []
    for word in text.split():
        if rng.random() < 0.08:
            ids.append(int(rng.integers(256, 49000)))
        ids += tokenizer.encode(word)
    row = np.zeros(CONTEXT, np.int64)
    row[: len(ids) + 2] = [tokenizer.sot_token_id, *ids[: CONTEXT - 2], tokenizer.eot_token_id]
    return row


def render(first: int, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """Scenes `first`, `first + 1`, ...: frames uint8 [n s s 3], token ids int64 [n captions context], and the objects."""
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    frames = []
    ids = []
    scenes = []
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        if (number - first) % 8 == 0:
            ground = texture(rng, SIDE)
        scene = random_scene(rng)
        frames.append(draw(ground, scene, offset=tuple(rng.integers(0, 2 * SIDE, 2))))
        ids.append([noisy_ids(caption(rng, scene), tokenizer, rng) for _ in range(CAPTIONS)])
        scenes.append(scene)
    return np.stack(frames), np.array(ids), scenes


def render_on_all_cores(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and token ids of at least `count` scenes, as `render` gives them."""
    starts = range(0, count, SCENES_AT_ONCE)
    frames = torch.empty(len(starts) * SCENES_AT_ONCE, SIDE, SIDE, 3, dtype=torch.uint8)
    ids = torch.empty(len(frames), CAPTIONS, CONTEXT, dtype=torch.int64)
    jobs = (delayed(render)(start, SCENES_AT_ONCE, seed=0) for start in starts)
    for start, (some_frames, some_ids, _) in zip(starts, Parallel(n_jobs=-1, return_as="generator")(jobs), strict=True):
        frames[start : start + SCENES_AT_ONCE] = torch.from_numpy(some_frames)
        ids[start : start + SCENES_AT_ONCE] = torch.from_numpy(some_ids)
    return frames, ids


def to_input(frames: torch.Tensor, preprocess: Mapping[str, Any]) -> torch.Tensor:
    """uint8 [b s s 3] -> normalised float [b 3 s s], with brightness, noise and sharpness that vary as those of cameras do."""
    x = frames.permute(0, 3, 1, 2).float() / 255
    gain = torch.empty(len(x), 1, 1, 1, device=x.device)
    x = x * gain.uniform_(0.8, 1.2) + torch.empty_like(gain).uniform_(-0.1, 0.1)
    blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.lerp(x, blurred, torch.empty_like(gain).uniform_(0, 0.9))
    x = x + torch.randn_like(x) * torch.empty_like(gain).uniform_(0, 0.04)
    mean = torch.tensor(preprocess["mean"], device=x.device).view(3, 1, 1)
    std = torch.tensor(preprocess["std"], device=x.device).view(3, 1, 1)
    return (x.clamp(0, 1) - mean) / std


def train(config: Mapping[str, Any], frames: torch.Tensor, ids: torch.Tensor, *, seconds: float, batch: int) -> CLIP:
    """Trains with the symmetric contrastive loss for `seconds`, with a cosine schedule over time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, ids = frames.to(device), ids.to(device)
    torch.manual_seed(0)
    model = CLIP(**config["model_cfg"]).to(device)
    decay = {name for name, weights in model.named_parameters() if weights.ndim >= 2 and "embedding" not in name}
    groups = [
        {"params": [w for name, w in model.named_parameters() if (name in decay) == has_decay], "weight_decay": value}
        for has_decay, value in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    start = time.monotonic()
    step = 0
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * share))
        pick = torch.randint(len(frames), (batch,), device=device)
        words = ids[pick, torch.randint(CAPTIONS, (batch,), device=device)]
        with torch.autocast(device.type, torch.bfloat16):
            image = model.encode_image(to_input(frames[pick], config["preprocess_cfg"]), normalize=True)
            text = model.encode_text(words, normalize=True)
        logits = model.logit_scale.exp() * image.float() @ text.float().T
        target = torch.arange(batch, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if step % 100 == 0:
            print(f"{share:4.0%} step {step} loss {loss.item():.3f}", flush=True)
    return model


def check(folder: Path, count: int = 1000) -> None:
    """Prints what the CLIP in `folder` can do on unseen frames.

    R@1 and R@5: how often a caption finds its frame. Patch hit: how often the patch most similar to 'a SIZE COLOUR SHAPE'
    lies on that object, and how often a random patch does.
    """
    encoder = load_encoder("costl-tiny", str(folder))
    frames, _, scenes = render(0, count, seed=HELD_OUT_SEED)
    tokens, frame_features = encoder.encode(frames)
    visual = open_clip.create_model(f"local-dir:{folder}").visual
    with torch.inference_mode():
        projected = visual.ln_post(torch.from_numpy(tokens[:, 1:]).float()) @ visual.proj
        patch_features = F.normalize(projected, dim=-1).numpy()  # [n p e]
    captions = [" and ".join(f"a {placed.thing}" for placed in scene[:4]) for scene in scenes]
    similarity = np.stack([text.sentence for text in encoder.encode_text(captions)]) @ frame_features.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    hits = []
    chance = []
    rng = np.random.default_rng(1)
    for patches, scene in zip(patch_features, scenes, strict=True):
        placed = scene[rng.integers(len(scene))]
        if sum(other.thing == placed.thing for other in scene) == 1:
            (text,) = encoder.encode_text([f"a {placed.thing}"])
            on_object = covered_patches(placed, encoder.patch_grid)
            hits.append(on_object[(patches @ text.sentence).argmax()])
            chance.append(on_object.mean())
    print(f"R@1 {(rank < 1).mean():.1%}, R@5 {(rank < 5).mean():.1%}")
    print(f"patch hit {np.mean(hits):.1%}, by chance {np.mean(chance):.1%}")


def covered_patches(placed: PlacedThing, grid: Sequence[int]) -> np.ndarray:
    """bool [p]: the patches that the square around an object meets."""
    y, x = ((np.arange(side) + 0.5) / side for side in grid)
    reach = placed.diameter / 2 + 0.5 / grid[0]
    return ((np.abs(y - placed.y) < reach)[:, None] & (np.abs(x - placed.x) < reach)).ravel()


def main() -> None:
    """Trains the model unless `--check` is given, and checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--batch", type=int, default=2048)
    arguments = parser.parse_args()
    if not arguments.check:
        torch.set_float32_matmul_precision("high")
        config = json.loads((TINY_CLIP / CONFIG).read_text())
        model = train(config, *render_on_all_cores(arguments.scenes), seconds=arguments.seconds, batch=arguments.batch)
        arguments.out.mkdir(parents=True, exist_ok=True)
        half = {name: weights.half().contiguous() for name, weights in model.state_dict().items()}
        save_file(half, arguments.out / "open_clip_model.safetensors")
        if arguments.out.resolve() != TINY_CLIP:
            shutil.copy(TINY_CLIP / CONFIG, arguments.out)
    check(arguments.out)


if __name__ == "__main__":
    main()
