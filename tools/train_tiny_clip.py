"""Trains costl-tiny, the small CLIP that comes with the project, on rendered frames and their captions.

    python tools/train_tiny_clip.py --out pipeline/world/costl-tiny

A GPU takes five minutes with the defaults. On two cores use --scenes 20000 --batch 256 --seconds 7200.

Captions name objects and their attributes in single frames, as captions on the web do. They never name positions, relations
and motions: the queries of the sample world are about these, and CoSTL must learn them.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import multiprocessing
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from costl.pipeline.world.render import PlacedThing, Thing, draw, random_diameter, random_thing, texture

SIDE, CONTEXT, CAPTIONS = 160, 32, 8
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIDE, "layers": 6, "width": 192, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture with {}",
    "here is {}",
    "{} on a textured ground",
    "look , {}",
    "a frame with {}",
)


def random_scene(rng: np.random.Generator) -> list[PlacedThing]:
    """One to seven objects without overlap, many of which differ in one attribute only."""
    placed: list[PlacedThing] = []
    base = random_thing(rng)
    for _ in range(rng.integers(1, 8)):
        thing = random_thing(rng)
        if rng.random() < 0.5:
            shared = rng.permutation(3)[:2]
            thing = Thing(
                *[(base if i in shared else thing).__getattribute__(n) for i, n in enumerate(("size", "colour", "shape"))]
            )
        for _ in range(20):
            x, y = rng.uniform(0.06, 0.94, 2)
            if all(math.hypot(x - p.x, y - p.y) > 0.13 for p in placed):
                placed.append(PlacedThing(thing, float(x), float(y), random_diameter(rng, thing)))
                break
    return placed


def caption(rng: np.random.Generator, scene: list[PlacedThing]) -> str:
    """Names one to four of the objects, each with some of its attributes."""
    named = rng.permutation(len(scene))[: rng.integers(1, min(4, len(scene)) + 1)]
    parts = []
    for i in named:
        thing = scene[i].thing
        words = [thing.size] * (rng.random() < 0.75) + [thing.colour] * (rng.random() < 0.92) + [thing.shape]
        parts.append(f"{rng.choice(['a', 'the', 'one'])} " + " ".join(words))
    joined = parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]
    return str(rng.choice(TEMPLATES)).format(joined)


class WordIds:
    """Maps captions to token ids, one word at a time (the same ids as the tokenizer gives for these simple captions)."""

    def __init__(self) -> None:
        self.tokenizer = SimpleTokenizer(context_length=CONTEXT)
        self.ids_by_word: dict[str, list[int]] = {}

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> np.ndarray:
        """int64 [context]; with `rng`, random tokens are inserted now and then, like noise in captions on the web."""
        ids = []
        for word in text.split():
            if word not in self.ids_by_word:
                self.ids_by_word[word] = self.tokenizer.encode(word)
            if rng is not None and rng.random() < 0.08:
                ids.append(int(rng.integers(256, 49000)))
            ids += self.ids_by_word[word]
        row = np.zeros(CONTEXT, np.int64)
        row[: len(ids) + 2] = [self.tokenizer.sot_token_id, *ids[: CONTEXT - 2], self.tokenizer.eot_token_id]
        return row


def render(count: int, *, seed: int, processes: int) -> tuple[np.ndarray, np.ndarray, list[list[PlacedThing]]]:
    """`count` scenes: frames uint8 [n s s 3], captions int64 [n k context], and the objects of the first scenes."""
    shape, words = (count, SIDE, SIDE, 3), (count, CAPTIONS, CONTEXT)
    frames = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
    ids = np.frombuffer(mmap.mmap(-1, 8 * math.prod(words)), np.int64).reshape(words)

    def work(start: int, stop: int, queue) -> None:
        tokenize, scenes = WordIds(), []
        for i in range(start, stop):
            rng = np.random.default_rng([seed, i])
            if (i - start) % 8 == 0:
                ground = texture(rng, SIDE)
            scene = random_scene(rng)
            frames[i] = draw(ground, scene, offset=tuple(rng.integers(0, 2 * SIDE, 2)))
            ids[i] = [tokenize(caption(rng, scene), rng) for _ in range(CAPTIONS)]
            scenes.append(scene if i < 4000 else None)
        queue.put((start, scenes))

    context = multiprocessing.get_context("fork")  # the arrays above are anonymous shared memory
    queue = context.SimpleQueue()
    edges = np.linspace(0, count, processes + 1).astype(int)
    running = [context.Process(target=work, args=(a, b, queue)) for a, b in pairwise(edges)]
    for process in running:
        process.start()
    scenes_by_start = dict(queue.get() for _ in running)
    for process in running:
        process.join()
    return frames, ids, [scene for start in sorted(scenes_by_start) for scene in scenes_by_start[start]]


def to_input(frames: torch.Tensor, *, jitter: bool) -> torch.Tensor:
    """uint8 [b s s 3] -> normalised float [b 3 s s]; `jitter` varies brightness, noise and sharpness, like cameras and codecs."""
    x = frames.permute(0, 3, 1, 2).float() / 255
    if jitter:
        gain = torch.empty(len(x), 1, 1, 1, device=x.device)
        x = x * gain.uniform_(0.8, 1.2) + torch.empty_like(gain).uniform_(-0.1, 0.1)
        blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = torch.lerp(x, blurred, torch.empty_like(gain).uniform_(0, 0.9))
        x = x + torch.randn_like(x) * torch.empty_like(gain).uniform_(0, 0.04)
    mean, std = (torch.tensor(CONFIG["preprocess_cfg"][k], device=x.device).view(3, 1, 1) for k in ("mean", "std"))
    return (x.clamp(0, 1) - mean) / std


def train(model: CLIP, frames: torch.Tensor, ids: torch.Tensor, *, seconds: float, batch: int, rate: float) -> int:
    """Trains with the symmetric contrastive loss for `seconds`, with a cosine schedule over time; -> number of steps."""
    device = next(model.parameters()).device
    decay = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    no_decay = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embedding" not in n)]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98)
    )
    start = time.monotonic()
    step = 0
    printed = 0.0
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 400) * (0.5 + 0.5 * math.cos(math.pi * share))
        pick = torch.randint(len(frames), (batch,), device=frames.device)
        words = ids[pick, torch.randint(CAPTIONS, (batch,), device=ids.device)].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            image = model.encode_image(to_input(frames[pick].to(device), jitter=True), normalize=True)
            text = model.encode_text(words, normalize=True)
        logits = model.logit_scale.exp() * image.float() @ text.float().T
        target = torch.arange(batch, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if share - printed > 0.05:
            printed = share
            print(f"{share:4.0%} step {step} loss {loss.item():.3f}", flush=True)
    return step


@torch.inference_mode()
def measure(model: CLIP, frames: torch.Tensor, scenes: list[list[PlacedThing]], *, seed: int = 1) -> dict[str, float]:
    """Zero-shot retrieval among 1,000 held-out frames by a full caption (R@1, R@5), and how often the patch most similar to
    'a SIZE COLOUR SHAPE' in the joint space is on that object (`patch_hit`, with its chance)."""
    device = next(model.parameters()).device
    tokenize = WordIds()
    rng = np.random.default_rng(seed)
    model.eval()
    image, patches = [], []
    for part in frames[:1000].split(250):
        x = to_input(part.to(device), jitter=False)
        image.append(model.encode_image(x, normalize=True))
        tokens = model.visual.forward_intermediates(x, indices=1, output_fmt="NLC", intermediates_only=True)[
            "image_intermediates"
        ][0]
        patches.append(F.normalize(model.visual.ln_post(tokens) @ model.visual.proj, dim=-1))
    image, patches = torch.cat(image), torch.cat(patches)
    captions = [" and ".join(f"a {p.thing}" for p in scene[:4]) for scene in scenes[:1000]]
    text = model.encode_text(torch.tensor(np.stack([tokenize(t) for t in captions]), device=device), normalize=True)
    similarity = text.double() @ image.double().T
    rank = (similarity > similarity.diagonal()[:, None]).sum(-1)
    hits, chance = [], []
    for i, scene in enumerate(scenes[:1000]):
        p = scene[rng.integers(len(scene))]
        if sum(q.thing == p.thing for q in scene) > 1:
            continue
        query = model.encode_text(torch.tensor(tokenize(f"a {p.thing}")[None], device=device), normalize=True)
        best = int((patches[i] @ query[0]).argmax())
        cell = 16 / SIDE
        on_object = [
            max(abs((c + 0.5) * cell - p.x), abs((r + 0.5) * cell - p.y)) < p.diameter / 2 + cell / 2
            for r in range(10)
            for c in range(10)
        ]
        hits.append(on_object[best])
        chance.append(np.mean(on_object))
    return {
        "retrieval_R@1": float((rank < 1).float().mean()),
        "retrieval_R@5": float((rank < 5).float().mean()),
        "patch_hit": float(np.mean(hits)),
        "patch_hit_chance": float(np.mean(chance)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pool", choices=["tok", "avg"], default="tok")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.pool == "avg":
        CONFIG["model_cfg"]["vision_cfg"] |= {"pool_type": "avg", "final_ln_after_pool": True}
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    started = time.monotonic()
    frames, ids, _ = render(args.scenes, seed=args.seed, processes=multiprocessing.cpu_count())
    held_frames, _, held_scenes = render(1000, seed=args.seed + 1_000_003, processes=2)
    print(f"rendered {args.scenes} scenes in {time.monotonic() - started:.0f} s", flush=True)
    config = json.loads(json.dumps(CONFIG["model_cfg"]))
    model = CLIP(**config).to(device)
    training_frames = torch.from_numpy(frames).to(device) if device.type == "cuda" else torch.from_numpy(frames)
    steps = train(
        model,
        training_frames,
        torch.from_numpy(ids).to(training_frames.device),
        seconds=args.seconds,
        batch=args.batch,
        rate=args.rate,
    )
    figures = measure(model, torch.from_numpy(held_frames), held_scenes) | {"steps": steps, "scenes": args.scenes}
    print(json.dumps(figures, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        args.out / "open_clip_model.safetensors",
    )
    (args.out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
