"""The HTML page of a report. It loads nothing from elsewhere, and is the same for the same run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from costl.plots.pages import load_templates
from costl.report.query import LENGTHS, OUTCOMES, Item
from costl.report.training import Curve

TEMPLATES = Path(__file__).parent / "templates"
GROUPS = {
    "MR-full": "Moments of any length",
    "MR-short": "Short moments",
    "MR-middle": "Middle moments",
    "MR-long": "Long moments",
    "HL-min-Fair": "Highlights rated Fair or better",
    "HL-min-Good": "Highlights rated Good or better",
    "HL-min-VeryGood": "Highlights rated Very Good",
}
SYMBOLS = {"hit": "●", "near": "◐", "miss": "○", "unlabelled": "–", "unanswered": "×"}


def to_html(
    *,
    items: Sequence[Item],
    numbers: Mapping[str, float],
    curves: Sequence[Curve],
    patch_grid: tuple[int, int],
    **content: Any,
) -> bytes:
    """The page in UTF-8. Its security policy allows its own script and its embedded pictures, and nothing else.

    `items` are in the order of the list. `numbers` are percentages by metric, and `patch_grid` is (rows, columns).
    `content` is for the template alone: `run`, `split`, `notes`, `kinds` (None without scores), `intervals` of some numbers,
    the metric that `selected` the `best_epoch`, and the `selection_split`.
    """
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    groups: dict[str, dict[str, str]] = {}
    for name in numbers:
        group, _, metric = name.rpartition("-")
        groups.setdefault(GROUPS.get(group, group or "All"), {})[name] = metric
    text = (
        load_templates("costl.report")
        .get_template("report.html")
        .render(
            content,
            items=items,
            numbers=numbers,
            groups=groups,
            curves=curves,
            epochs=sorted({epoch for curve in curves for epoch in curve.values}),
            patch_grid=patch_grid,
            maps=_map_data(items),
            thumbnails={picture.id: picture.thumbnail for item in items for picture in item.pictures},
            outcomes=OUTCOMES,
            symbols=SYMBOLS,
            lengths=LENGTHS,
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=script,
            checksum=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    return text.encode("utf-8", errors="replace")


def _map_data(items: Sequence[Item]) -> dict[str, Any]:
    """The attention maps for the script: for every picture the weights of patches and words, in thousandths."""
    data = {}
    for index, item in enumerate(items):
        for i in range(len(item.pictures)):
            if item.maps is not None:
                short_list = item.short_list(i)
                data[f"m{index}-{i}"] = {
                    "share": _thousandths(item.maps.share[i]),
                    "chosen": short_list,
                    "words": _thousandths(item.maps.attention[i][:, short_list]),
                    "nothing": _thousandths(item.maps.null_attention[i]),
                }
    return data


def _thousandths(values: np.ndarray) -> list[Any]:
    return (values * 1000).round().astype(int).tolist()
