"""The sections of the page in their order, with their time limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the page.

    `work` is a function of this package, as module:function, or the arguments of a `costl` command. It takes `seconds` at
    most, in so many `processes`, and needs `packages`. `about` says what is measured.
    """

    title: str
    about: str
    work: str | tuple[str, ...]
    seconds: float
    packages: tuple[str, ...] = ()
    processes: int = 1


# The most important ones come first: what no longer fits into the time is left out.
SECTIONS = (
    Section("Machine", "The GPU, its driver, and the versions of the packages.", "machine:machine", 40, ("torch",)),
    Section(
        "Tokens in half precision",
        "Tokens and joint vectors of the same pictures on the GPU, compared with float32 on the CPU: relative L2 distances, of "
        "all frames and of the worst one. The speed is that of full batches that are on the GPU already. Random weights.",
        "encoder:tokens",
        75,
        ("open_clip",),
    ),
    Section(
        "A training step",
        "32 queries about 32 videos of 75 clips, random features: forward, backward, optimizer and average, in each "
        "precision. Synchronisations are the times that the host waits for the GPU: once to check that loss and gradient are "
        "finite, and in float16 once more for the loss scale.",
        "training:steps",
        90,
        ("open_clip",),
    ),
    Section(
        "Extraction and its two halves",
        "Frames a second of decoding alone, of CLIP alone, and of extraction from end to end. The limit is the slower half; "
        "the share is that of the limit. Rendered videos of 360p and 720p, PyAV, all cores, random weights.",
        "extraction:halves",
        110,
        ("open_clip", "av"),
    ),
    Section(
        "A full GPU",
        "An extraction with less memory than its batch needs: the batch is halved, and the tokens are those of an extraction "
        "with enough memory.",
        "encoder:full_memory",
        40,
        ("open_clip", "av"),
    ),
    Section(
        "Pinned memory",
        "Copies between pinned memory and the GPU run in the background. While the GPU is busy, the host must not wait for "
        "it, and no buffer may be used again before it was copied.",
        "copies:copies",
        30,
        ("open_clip",),
    ),
    Section(
        "A small cache",
        "A small sample world through `costl extract`, with the small CLIP that comes with CoSTL.",
        "runs:cache",
        40,
        ("open_clip", "av", "h5py"),
    ),
    Section(
        "Training and resuming",
        "The small cache. On a CPU a resumed run has the weights of an uninterrupted one to the last bit. On a GPU, only the "
        "rounding may differ, as it does between two uninterrupted runs. Distances are relative L2 distances of all weights.",
        "runs:resuming",
        60,
        ("open_clip", "h5py"),
    ),
    Section(
        "DDP with one process",
        "DistributedDataParallel over NCCL, compared with the same steps without it.",
        "training:one_process",
        30,
        ("open_clip",),
    ),
    Section(
        "DDP with two processes on one GPU",
        "The small cache. NCCL refuses two processes on one GPU, so that gloo sums the tensors, which are on the GPU. Compared "
        "with one process; without dropout, whose draws differ.",
        "runs:two_processes",
        60,
        ("open_clip", "h5py"),
        processes=2,
    ),
    Section(
        "NVDEC",
        "Frames a second of decoding alone on all cores, by the decoder of the GPU and by PyAV; and how much their frames "
        "differ, in grey levels.",
        "extraction:nvdec",
        40,
        ("av", "torchcodec"),
    ),
    Section(
        "`costl bench train`",
        "Forward is in float32, forward and backward in bfloat16. The optimizer is not measured.",
        ("bench", "train", "--device", "cuda", "--videos", "32", "--quiet"),
        90,
        ("open_clip",),
    ),
    Section(
        "`costl bench search`",
        "The scan runs on the CPU, the text tower on the GPU.",
        ("bench", "search", "--device", "cuda", "--hours", "10", "--repeats", "1", "--quiet"),
        90,
        ("open_clip", "numkong"),
    ),
    Section(
        "`costl bench extract`",
        "Small videos and the small CLIP, to see that the command runs. The section on extraction has the real encoders.",
        ("bench", "extract", "--device", "cuda", "--quick", "--repeats", "1", "--quiet"),
        50,
        ("open_clip", "av", "decord"),
    ),
)
