"""The measurements of a run, and the line about it in the history of the cache."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from costl.pipeline.errors import CostlError
from costl.pipeline.run.history import describe_run, last_run, recorded_run, runs_file
from costl.pipeline.run.throughput import Meter

ENCODERS = [SimpleNamespace(device="cuda:0", precision="fp16"), SimpleNamespace(device="cuda:1", precision="fp16")]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def working_encoder(waiting_for: str = "") -> SimpleNamespace:
    return SimpleNamespace(frames=0, waiting_for=waiting_for)


def test_the_throughput_is_recent_and_names_the_slower_half():
    clock = Clock()
    meter = Meter(clock)
    encoders = [working_encoder("decode"), working_encoder("decode")]
    meter.watch(encoders, processes=4)
    for seconds, waiting_for in ((9, "decode"), (1, "")):
        for encoder in encoders:
            encoder.waiting_for = waiting_for
        clock.now_s += seconds
        meter.sample()
    for encoder in encoders:
        encoder.frames += 50
    speed = meter.throughput(done=1.5, total=6)
    assert (speed.frames, speed.frames_per_s, speed.waiting_for, speed.waiting) == (100, 10, "decode", 0.9)
    assert speed.left_s == 30 and str(speed) == "10 frames/s, waiting for decode 90 %, 0:00:30 left"
    encoders[0].frames += 400
    meter.waited_s["CLIP"] += 32
    clock.now_s += 10
    speed = meter.throughput(done=3, total=6)
    assert (speed.frames_per_s, speed.waiting_for, speed.waiting) == (40, "CLIP", 0.8)
    assert meter.throughput(done=0, total=6).left_s is None


@pytest.mark.parametrize(
    ("error", "ended"),
    [(None, "done"), (KeyboardInterrupt(), "interrupted"), (CostlError("no disk"), "stopped: no disk")],
)
def test_a_run_leaves_a_line_however_it_ends(tmp_path, error, ended):
    cache = tmp_path / "feats.h5"
    try:
        with recorded_run(cache, ENCODERS) as meter:
            encoder = working_encoder()
            encoder.frames = 75
            meter.watch([encoder], processes=2)
            meter.waited_s["decode"] = 3.0
            meter.videos.update(ok=2, failed=1, skipped=4)
            meter.batches = [256, 128]
            if error:
                raise error
    except BaseException as caught:
        assert caught is error
    (line,) = map(json.loads, runs_file(cache).read_text().splitlines())
    assert line == last_run(cache) and line["ended"] == ended
    assert line["videos"] == {"ok": 2, "failed": 1, "skipped": 4} and line["frames"] == 75
    assert line["bottleneck"] == "decode" and line["waiting"] == 1.0
    assert (line["devices"], line["precision"], line["batch"]) == (["cuda:0", "cuda:1"], "fp16", [256, 128])
    sentence = describe_run(line)
    assert sentence.startswith(f"Last run: {line['started']}, {ended} after ") and "2 ok, 1 failed, 4 skipped" in sentence
    assert "75 frames" in sentence and "fp16 on cuda:0, cuda:1 in batches of 128 and 256." in sentence


def test_half_a_line_of_a_killed_run_does_not_damage_others(tmp_path):
    cache = tmp_path / "feats.h5"
    for _ in range(2):
        with recorded_run(cache, ENCODERS):
            pass
        with runs_file(cache).open("a") as file:
            file.write('{"started": "20')
    first, half, second, rest = runs_file(cache).read_text().split("\n")
    assert json.loads(first) and json.loads(second) and half == rest == '{"started": "20'
    assert last_run(cache) == json.loads(second)


@pytest.mark.parametrize("content", [None, "", "no json\n[1, 2]\n"])
def test_a_missing_or_empty_history_is_not_an_error(tmp_path, content):
    if content is not None:
        runs_file(tmp_path / "feats.h5").write_text(content)
    assert last_run(tmp_path / "feats.h5") is None
    assert describe_run({"started": "by another version"}) == ""
