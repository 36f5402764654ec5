"""The forecast: seconds and bytes of what is left, worked out by hand, and the queries and videos it is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from costl.config import load_config
from costl.config_files import benchmark_settings
from costl.data.annotations import Query
from costl.pipeline.errors import UsageError
from costl.pipeline.progress import Progress
from costl.reproduce import forecast
from costl.reproduce.forecast import Forecast, Rates, Work, duration, read_rates, size, work_left, write_rates
from costl.reproduce.measure import VIDEOS, StageTimer, choose_sample

RATES = Rates(
    videos=6,
    fps=0.5,
    clip_s=0.25,
    clip_bytes=1e5,
    sentence_bytes=1e4,
    train_s=0.02,
    predict_s=0.01,
    run_s=5.0,
    run_bytes=1e7,
)
WORK = Work(videos=100, clips=7_500, sentences=1_000, trainings=5, trained=60_000, predicted=12_000)


def queries(count: int, *, videos: int, domains: tuple[str, ...] = ("",)) -> list[Query]:
    return [
        Query(qid, f"sentence {qid}", f"v{qid % videos}", 150.0, ((0.0, 10.0),), domain=domains[qid % len(domains)])
        for qid in range(count)
    ]


def test_the_message_adds_up_seconds_and_bytes(monkeypatch):
    monkeypatch.setattr(forecast, "free_bytes", lambda folder: 20e9)
    planned = Forecast(RATES, WORK)
    assert planned.features_s == 7_500 * 0.25 == 1_875
    assert planned.trainings_s == 60_000 * 0.02 + 12_000 * 0.01 + 5 * 5 == 1_345
    assert (planned.features_bytes, planned.trainings_bytes) == (760e6, 50e6)
    assert planned.message(Path("r")) == (
        "About 54 min and 0.8 GB are left: 31 min and 0.8 GB for the features of 100 videos, at most 22 min and 50.0 MB for "
        "5 trainings (measured here on 6 videos). 20.0 GB are free at r."
    )


@pytest.mark.parametrize(("free", "refused"), [(810e6, False), (809e6, True)])
def test_a_disk_is_refused_when_a_byte_is_missing(free, refused, monkeypatch):
    monkeypatch.setattr(forecast, "free_bytes", lambda folder: free)
    if not refused:
        return Forecast(RATES, WORK).refuse_small_disk(Path("r"), hint=" --dtype int8 halves the features.")
    with pytest.raises(UsageError, match=r"^r: 0\.8 GB are free, and 0\.8 GB .* 50\.0 MB for 5 trainings\. .*int8 halves"):
        Forecast(RATES, WORK).refuse_small_disk(Path("r"), hint=" --dtype int8 halves the features.")
    return None


def test_the_work_left_counts_epochs_seeds_and_domains(tmp_path):
    domains = ("AA", "BB")
    train, test = queries(40, videos=10, domains=domains), queries(4, videos=2, domains=domains)
    settings = load_config(benchmark_settings("tvsum"), overrides=["train.epochs=10"])
    (tmp_path / "runs" / "AA" / "seed-0").mkdir(parents=True)
    (tmp_path / "runs" / "AA" / "seed-0" / "summary.json").write_text("{}")
    options = {"fps": 0.5, "seeds": 3, "cache": tmp_path / "gone.h5", "runs": tmp_path / "runs"}
    work = work_left({"train": train, "test": test}, ["v0", "v1", "v2"], settings, **options)
    # Five of six trainings are left, each on half of the queries and on 60 pseudo-labels.
    expected = Work(videos=3, clips=3 * 75, sentences=40, trainings=5, trained=5 * 10 * (20 + 60), predicted=20)
    assert work == expected
    charades = load_config(benchmark_settings("charades"), overrides=["train.epochs=10"])
    splits = {"train": train, "val": queries(5, videos=1), "test": test}
    work = work_left(splits, ["v0"], charades, **options | {"runs": tmp_path / "none"})
    assert (work.trainings, work.trained, work.predicted) == (3, 3 * 10 * (40 + 60), 3 * (11 * 5 + 2 * 4))


def test_the_sample_is_spread_over_videos_and_fits_into_a_batch():
    rows = queries(200, videos=50)
    sample = choose_sample(rows, [f"v{i}" for i in range(40)], limit=10)
    assert len(sample) == 10 and len({query.vid for query in sample}) == VIDEOS
    assert {query.vid for query in choose_sample(rows, ["v3"], limit=2)} == {"v3"}
    assert choose_sample(rows, ["elsewhere"], limit=2) == []


def test_a_stage_has_the_seconds_before_each_of_its_reports(monkeypatch):
    times = iter([10.0, 12.0, 13.0, 17.0, 17.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    forwarded = []
    timer = StageTimer(forwarded.append)
    updates = [Progress(stage, 0, 1) for stage in ("check", "videos", "videos", "train")]
    for update in updates:
        timer(update)
    assert dict(timer.seconds) == {"check": 2.0, "videos": 5.0, "train": 0.5} and forwarded == updates


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"videos": 1}', "{"])
def test_a_damaged_forecast_is_measured_again(tmp_path, content):
    (tmp_path / "forecast.json").write_text(content)
    assert read_rates(tmp_path / "forecast.json") is None
    write_rates(tmp_path / "forecast.json", RATES)
    assert read_rates(tmp_path / "forecast.json") == RATES


def test_durations_and_sizes_have_the_unit_that_suits_them():
    texts = ["0 s", "89 s", "2 min", "60 min", "1.5 hours", "10.0 hours"]
    assert [duration(seconds) for seconds in (0, 89, 90, 3_600, 5_400, 36_000)] == texts
    assert [size(b) for b in (0, 5e6, 1e8, 58.46e9)] == ["0.0 MB", "5.0 MB", "0.1 GB", "58.5 GB"]
