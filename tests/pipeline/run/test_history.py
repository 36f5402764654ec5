"""What is measured while a run goes on, and the line about it that stays beside the cache."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from costl.pipeline.errors import CostlError
from costl.pipeline.run.history import in_words, last_run, recorded, runs_file
from costl.pipeline.run.meter import Meter, Waits

CLIPS = [SimpleNamespace(device="cuda:0", precision="fp16"), SimpleNamespace(device="cuda:1", precision="fp16")]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def working(clock: Clock, **waits_s: float) -> SimpleNamespace:
    device = SimpleNamespace(frames=0, waits=Waits(clock))
    wait(clock, device, **waits_s)
    return device


def wait(clock: Clock, device: SimpleNamespace, **waits_s: float) -> None:
    for what, seconds in waits_s.items():
        before = clock.now_s
        with device.waits.waiting(what):
            clock.now_s += seconds
        clock.now_s = before


def test_a_wait_counts_before_it_is_over():
    clock = Clock()
    waits = Waits(clock)
    with waits.waiting("decode"):
        clock.now_s += 3
        assert (waits.seconds("decode"), waits.seconds("disk")) == (3, 0)
    clock.now_s += 4
    with waits.waiting("decode"):
        clock.now_s += 2
    assert waits.seconds("decode") == 5


def test_the_flow_is_that_of_the_last_seconds_and_names_the_slower_half():
    clock = Clock()
    meter, devices = Meter(clock), [working(clock), working(clock)]
    meter.watch(devices, processes=4)
    for device in devices:
        device.frames += 50
        wait(clock, device, decode=9.0)
    clock.now_s += 10
    flow = meter.flow(done=1.5, total=6)
    assert (flow.frames, flow.frames_per_s, flow.waiting_for, flow.waiting) == (100, 10, "decode", 0.9)
    assert flow.left_s == 30 and str(flow) == "10 frames/s, waiting for decode 90 %, 0:00:30 left"
    devices[0].frames += 400
    meter.decode_waited_s += 32
    clock.now_s += 10
    flow = meter.flow(done=3, total=6)
    assert (flow.frames_per_s, flow.waiting_for, flow.waiting) == (40, "CLIP", 0.8)
    assert meter.flow(done=0, total=6).left_s is None


@pytest.mark.parametrize(
    ("error", "ended"),
    [(None, "done"), (KeyboardInterrupt(), "interrupted"), (CostlError("no disk"), "stopped: no disk")],
)
def test_a_run_leaves_a_line_however_it_ends(tmp_path, error, ended):
    cache = tmp_path / "feats.h5"
    try:
        with recorded(cache, CLIPS) as meter:
            clock = Clock()
            device = working(clock, decode=3.0)
            device.frames = 75
            meter.watch([device], processes=2)
            meter.videos.update(ok=2, failed=1, skipped=4)
            meter.decoders["decord 0.6.0"] += 2
            meter.batches = [256, 128]
            if error:
                raise error
    except BaseException as caught:
        assert caught is error
    (line,) = map(json.loads, runs_file(cache).read_text().splitlines())
    assert line == last_run(cache) and line["ended"] == ended
    assert line["videos"] == {"ok": 2, "failed": 1, "skipped": 4} and line["frames"] == 75
    assert line["waited_s"] == {"decode": 3.0, "disk": 0.0, "CLIP": 0.0} and line["bottleneck"] == "decode"
    assert (line["devices"], line["precision"], line["batch"]) == (["cuda:0", "cuda:1"], "fp16", [256, 128])
    assert line["decoders"] == {"decord 0.6.0": 2} and line["versions"]["torch"] and line["peak_bytes"]["here"] > 1e6
    told = in_words(line)
    assert told.startswith(f"Last run: {line['started']}, {ended} after ") and "2 ok, 1 failed, 4 skipped" in told
    assert "75 frames" in told and "fp16 on cuda:0, cuda:1 in batches of 128 and 256." in told


def test_half_a_line_of_a_killed_run_spoils_no_other(tmp_path):
    cache = tmp_path / "feats.h5"
    for _ in range(2):
        with recorded(cache, CLIPS):
            pass
        with runs_file(cache).open("a") as file:
            file.write('{"started": "20')
    first, half, second, rest = runs_file(cache).read_text().split("\n")
    assert json.loads(first) and json.loads(second) and half == rest == '{"started": "20'
    assert last_run(cache) == json.loads(second)


@pytest.mark.parametrize("content", [None, "", "no json\n[1, 2]\n"])
def test_no_run_known_is_no_error(tmp_path, content):
    if content is not None:
        runs_file(tmp_path / "feats.h5").write_text(content)
    assert last_run(tmp_path / "feats.h5") is None
    assert in_words({"started": "by another version"}) == ""
