"""Copies between pinned memory and a GPU: they are right while the GPU is busy, and the host does not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from costl.bench.train import QUICK, synthetic_batch
from costl.data.batch import Batch
from costl.model.inputs import map_tensors
from costl.pipeline.bench.extract import full_batches
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.encode.preprocess import prepare
from gpu_sections.common import Setup
from gpu_sections.encoder import models, network_of

CYCLES = 1 << 30  # for which the GPU is kept busy: about half a second
MOST_WAITED_S = 0.1
CHUNKS, SIDES = 16, (360, 640)  # the GPU queues about a thousand kernels, and then the host must wait
GIGABYTE = 1 << 30


def copies(setup: Setup) -> None:
    """Frames to the GPU, features from it, and batches of training to it."""
    network, source = network_of(models(setup)[0])
    encoder = CLIPEncoder(network, source=source, device=setup.device, precision="fp32")
    with setup.attempt("frames"):
        setup.checks(_frames(setup, encoder))
    with setup.attempt("features"):
        setup.checks(_features(setup, encoder))
    with setup.attempt("batches"):
        setup.checks(_batches(setup))
    if setup.on_gpu:
        with setup.attempt("speed"):
            _speed(setup)


def _frames(setup: Setup, encoder: CLIPEncoder) -> Iterator[tuple[str, bool]]:
    rng = np.random.default_rng(0)
    count = 2 if setup.tiny else CHUNKS
    chunks = [rng.integers(0, 256, (4, *SIDES, 3), np.uint8) for _ in range(count)]
    prepared, waited_s = _while_busy(setup, lambda: [encoder.prepare(chunk) for chunk in chunks])
    yield _waited(setup, "sent frames", waited_s)
    level = 1.01 / 255 / min(encoder.preprocess.std)
    expected = [prepare(torch.from_numpy(chunk), encoder.preprocess) for chunk in chunks]
    differences = [float((ours.cpu() - theirs).abs().max()) for ours, theirs in zip(prepared, expected, strict=True)]
    yield "all frames arrived, to one grey level", max(differences) < level


def _features(setup: Setup, encoder: CLIPEncoder) -> Iterator[tuple[str, bool]]:
    size = (4, *encoder.image_size, 3)
    images = [encoder.prepare(np.full(size, 40 * number, np.uint8)) for number in range(2)]
    batches = full_batches(images, 4)
    fetches, waited_s = _while_busy(setup, lambda: [encoder.start(batch) for batch in batches])
    yield _waited(setup, "started batches", waited_s)
    together = [fetch() for fetch in fetches]
    alone = [encoder.encode_images(batch) for batch in batches]
    same = all(np.array_equal(a, b) for x, y in zip(together, alone, strict=True) for a, b in zip(x, y, strict=True))
    yield "features of overlapping batches are those of one batch at a time", same


def _batches(setup: Setup) -> Iterator[tuple[str, bool]]:
    batch = synthetic_batch(QUICK[0], 4, patches=True)
    without_moments = replace(batch, moments=batch.moments[:, :0], moment_mask=batch.moment_mask[:, :0])
    for name, original in (("a batch", batch), ("a batch without a moment", without_moments)):
        pinned = original.pin_memory() if setup.on_gpu else map_tensors(original, Tensor.clone)
        sent, waited_s = _while_busy(setup, lambda pinned=pinned: pinned.to(setup.device))
        del pinned
        if setup.on_gpu:
            _overwrite_pinned(original)
        yield _waited(setup, f"sent {name}", waited_s)
        yield f"{name} arrived", all(torch.equal(a, b.cpu()) for a, b in zip(_tensors(original), _tensors(sent), strict=True))


def _while_busy(setup: Setup, work: Callable[[], object]) -> tuple[object, float]:
    """The result of the work, and the time it took the host, while the GPU is busy with something else."""
    work()  # allocates memory, and loads the kernels
    setup.wait()
    if setup.on_gpu:
        torch.cuda._sleep(CYCLES)
    started_s = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started_s


def _waited(setup: Setup, doing: str, waited_s: float) -> tuple[str, bool]:
    return f"the host {doing} in {waited_s:.3f} s while the GPU was busy", waited_s < MOST_WAITED_S or not setup.on_gpu


def _overwrite_pinned(batch: Batch) -> None:
    """Writes into all pinned memory of the size of this batch that torch considers free."""
    for _ in range(4):
        map_tensors(batch, lambda tensor: torch.zeros_like(tensor).pin_memory())


def _tensors(batch: Batch) -> list[Tensor]:
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, collect)
    return tensors


def _speed(setup: Setup) -> None:
    setup.table("copy to the GPU", "GB/s")
    on_gpu = torch.empty(GIGABYTE, dtype=torch.uint8, device=setup.device)
    for name, source in (("pageable memory", torch.zeros(GIGABYTE, dtype=torch.uint8)), ("pinned memory", None)):
        source = torch.zeros(GIGABYTE, dtype=torch.uint8, pin_memory=True) if source is None else source
        on_gpu.copy_(source)
        seconds = setup.seconds(lambda source=source: on_gpu.copy_(source, non_blocking=True))
        setup.row(name, f"{GIGABYTE / seconds / 1e9:.1f}")
