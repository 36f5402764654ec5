"""The table of results for a paper: a row for each method, and the metrics that papers on the benchmark print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from costl.pipeline.formats.table import latex_table, table

Numbers = Mapping[str, float | None]  # the headline numbers of one run, in percent

MOMENTS = {"R1@0.3": "MR-full-R1@0.3", "R1@0.5": "MR-full-R1@0.5", "R1@0.7": "MR-full-R1@0.7", "mIoU": "MR-full-mIoU"}
COLUMNS = {
    "qvhighlights": {
        "R1@0.5": "MR-full-R1@0.5",
        "R1@0.7": "MR-full-R1@0.7",
        "mAP@0.5": "MR-full-mAP@0.5",
        "mAP@0.75": "MR-full-mAP@0.75",
        "mAP avg": "MR-full-mAP",
        "HL mAP": "HL-min-VeryGood-mAP",
        "HIT@1": "HL-min-VeryGood-Hit1",
    },
    "charades": MOMENTS,
    "tacos": MOMENTS,
    "tvsum": {"top-5 mAP": "HL-top5-mAP"},
    "youtube-highlights": {"mAP": "HL-mAP"},
}
WITH_DOMAINS = ("tvsum", "youtube-highlights")  # papers train and score a model for each domain
DOMAINS = ("VT", "VU", "GA", "MS", "PK", "PR", "FM", "BK", "BT", "DS")  # of TVSum, in the order of papers


def paper_columns(benchmark: str, numbers: Numbers) -> dict[str, str]:
    """The key of each column by its name, as far as `numbers` have it. Domains come first, the mean over them last."""
    columns = {name: key for name, key in COLUMNS[benchmark].items() if numbers.get(key) is not None}
    if benchmark not in WITH_DOMAINS:
        return columns
    (mean,) = COLUMNS[benchmark].values()
    domains = sorted(key.removeprefix(f"{mean}-") for key in numbers if key.startswith(f"{mean}-"))
    domains.sort(key=lambda domain: DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS))
    return {domain: f"{mean}-{domain}" for domain in domains} | columns


def paper_table(rows: Mapping[str, Sequence[Numbers]], *, benchmark: str, style: str) -> list[str]:
    """The lines of a table in Markdown (`style` "md") or LaTeX ("latex"), with two decimals.

    `rows` has the numbers of every seed for each method. Several seeds give mean and standard deviation. There is a column
    for each metric that the first method has.
    """
    columns = paper_columns(benchmark, next(iter(rows.values()))[0])
    cells = [
        [" ".join(name.split()), *(_cell([run.get(key) for run in runs]) for key in columns.values())]
        for name, runs in rows.items()
    ]
    return (latex_table if style == "latex" else table)(["Method", *columns], cells)


def mean_cell(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation (divisor n - 1) as text, or one value alone."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.{digits}f}"


def _cell(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return mean_cell(numbers, digits=2) if numbers else "-"
