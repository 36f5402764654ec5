"""The HTML page of a report. It escapes all text, loads nothing from elsewhere, and is the same for the same run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.preview.thumbnails import Thumbnail
from costl.report.charts import coordinate, escape, interval, overview, training_curve
from costl.report.detail import map_data, picture_definitions, query_detail
from costl.report.query import LENGTHS, OUTCOMES, Item

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
SELECTION_SPLITS = {"val": "validation", "test": "the test split, which selected the epoch"}
SYMBOLS = {"hit": "●", "near": "◐", "miss": "○", "unlabelled": "–", "unanswered": "×"}


@dataclass(frozen=True)
class Page:
    """The content of a report.

    `numbers` are percentages; some have `intervals`. `rows` are the epochs of training. `select` is the metric that selected
    `best_epoch`. `items` are in the order of the list. `pictures` are the thumbnails by picture id.
    """

    run: str
    split: str
    numbers: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    notes: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    select: str
    best_epoch: int | None
    items: Sequence[Item]
    pictures: Mapping[str, Thumbnail]
    patch_grid: tuple[int, int]


def to_html(page: Page) -> bytes:
    """The page in UTF-8. Its security policy allows its own script and its embedded pictures, and nothing else."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'; img-src data:"
    title = f"CoSTL: {page.split} of {page.run}"
    maps = _json(map_data(page.items, page.patch_grid))
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#queries">Skip to the queries</a>\n{_header(page)}<main>\n'
        f"{_numbers(page)}{_training(page)}{_queries(page)}{_details(page)}</main>\n"
        f"{_dialog()}{picture_definitions(page.pictures)}"
        f'<script type="application/json" id="maps">{maps}</script>\n<script>{script}</script>\n'
        "</body>\n</html>\n"
    )
    return text.encode("utf-8", errors="replace")


def _header(page: Page) -> str:
    counts = {name: sum(item.outcome == name for item in page.items) for name in OUTCOMES}
    outcomes = " · ".join(f"{SYMBOLS[name]} {count} {name}" for name, count in counts.items() if count)
    notes = "".join(f"<li>{escape(note)}</li>" for note in page.notes)
    return (
        f"<header>\n<p class='quiet'>CoSTL report</p>\n<h1>{escape(page.split)} <span>of {escape(page.run)}</span></h1>\n"
        f"<p>{len(page.items)} queries: {outcomes}</p>\n"
        + (f'<ul class="notes" aria-label="Notes">{notes}</ul>\n' if notes else "")
        + "</header>\n"
    )


def _numbers(page: Page) -> str:
    groups: dict[str, list[str]] = {}
    for name in page.numbers:
        groups.setdefault(name.rpartition("-")[0], []).append(name)
    tables = "".join(_group(page, group, names, index) for index, (group, names) in enumerate(groups.items()))
    legend = "All numbers are percentages."
    if page.intervals:
        legend += " Lines across the bars are 95 % bootstrap intervals over queries."
    return (
        f'<section aria-labelledby="numbers"><h2 id="numbers">Numbers</h2><p class="quiet">{legend}</p>'
        f'<div class="groups">{tables}</div></section>\n'
    )


def _group(page: Page, group: str, names: Sequence[str], index: int) -> str:
    rows = []
    for row, name in enumerate(names):
        value = page.numbers[name]
        bounds = page.intervals.get(name)
        metric = name.rpartition("-")[2]
        span = f'<span class="quiet">{bounds[0]:.1f} to {bounds[1]:.1f}</span>' if bounds else ""
        bar = interval(f"n{index}-{row}", metric, value, bounds)
        rows.append(
            f'<tr><th scope="row">{escape(metric)}</th><td class="bar">{bar}</td><td class="value">{value:.2f} {span}</td></tr>'
        )
    caption = escape(GROUPS.get(group, group or "All"))
    return f"<table><caption>{caption}</caption><tbody>{''.join(rows)}</tbody></table>"


def _training(page: Page) -> str:
    if not page.rows:
        return ""
    best = f" The dotted line is epoch {page.best_epoch}, whose weights are used." if page.best_epoch else ""
    return (
        f'<section aria-labelledby="training"><h2 id="training">Training</h2><p class="quiet">{len(page.rows)} epochs, '
        f"each number on its own scale.{best}</p>{_cards(page)}{_epochs_table(page)}</section>\n"
    )


def _cards(page: Page) -> str:
    """A card for every number. Shows those of selection, losses and learning rate; the others can be opened."""
    split = _selection_split(page)
    metrics = dict.fromkeys(name for row in page.rows for name in row.get(split, {}))
    losses = dict.fromkeys(name for row in page.rows for name in row.get("losses", {}))
    rates = [(row["epoch"], row["learning_rate"]) for row in page.rows if "learning_rate" in row]
    cards = {name: _card(page, split, name, index) for index, name in enumerate(metrics)}
    first = [cards.pop(page.select)] if page.select in cards else []
    first += [_card(page, "losses", name, index) for index, name in enumerate(losses)]
    if rates:
        first.append(training_curve("rate", "learning rate", rates, best_epoch=page.best_epoch, css="plain"))
    visible = f'<div class="cards">{"".join(first)}</div>'
    if not cards:
        return visible
    others = "".join(cards.values())
    summary = f"The other numbers on {SELECTION_SPLITS[split]}"
    return f'{visible}<details><summary>{summary}</summary><div class="cards">{others}</div></details>'


def _selection_split(page: Page) -> str:
    """The split whose metrics selected the epoch."""
    return "test" if any("test" in row for row in page.rows) else "val"


def _card(page: Page, kind: str, name: str, index: int) -> str:
    points = [(row["epoch"], row[kind][name]) for row in page.rows if name in row.get(kind, {})]
    title, css = (name, "guess") if kind in SELECTION_SPLITS else (f"{name} loss", "truth")
    return training_curve(f"{kind}{index}", title, points, best_epoch=page.best_epoch, css=css)


def _epochs_table(page: Page) -> str:
    losses = list(dict.fromkeys(name for row in page.rows for name in row.get("losses", {})))
    split = _selection_split(page)
    with_score = any(page.select in row.get(split, {}) for row in page.rows)
    heads = ["epoch", *losses, "learning rate", *([page.select] if with_score else [])]
    body = []
    for row in page.rows:
        cells = [f"{row.get('losses', {}).get(name, float('nan')):.4f}" for name in losses]
        cells.append(f"{row.get('learning_rate', float('nan')):.2e}")
        cells += [f"{row.get(split, {}).get(page.select, float('nan')):.2f}"] if with_score else []
        body.append(f'<tr><th scope="row">{row["epoch"]}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        '<details><summary>Training by epoch as a table</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Training by epoch"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _queries(page: Page) -> str:
    detailed = sum(item.detailed for item in page.items)
    heads = (("query", "Query", ""), ("video", "Video", "wide"), ("length", "Length", "wide"), ("iou", "IoU", ""))
    columns = "".join(_column(*head) for head in [*heads, ("outcome", "Outcome", "")])
    rows = "".join(_row(index, item) for index, item in enumerate(page.items))
    return (
        '<section aria-labelledby="queries"><h2 id="queries" tabindex="-1">Queries</h2><p class="quiet">Worst first. '
        f"{detailed} of {len(page.items)} queries can be opened in full detail. They are spread from the worst to the best."
        f'</p>{_filters()}<table class="list"><caption class="unseen">Queries with the IoU of their first predicted moment. '
        f"The buttons in the table head sort the list.</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody>"
        '</table><p id="none" class="quiet" hidden>No query matches these filters.</p></section>\n'
    )


def _column(key: str, name: str, css: str) -> str:
    order = ' aria-sort="ascending"' if key == "iou" else ""
    button = f'<button type="button">{name}<i aria-hidden="true"></i></button>'
    return f'<th scope="col" class="{css}" data-key="{key}"{order}>{button}</th>'


def _filters() -> str:
    def options(choices: Mapping[str, str]) -> str:
        return "".join(f'<option value="{key}">{escape(label)}</option>' for key, label in choices.items())

    return (
        '<form class="filters needs-script" role="search" aria-label="Filter the queries">'
        '<label>Text <input type="search" name="text" autocomplete="off" placeholder="word, video or id"></label>'
        f'<label>True moment <select name="moment"><option value="">of any length</option>{options(LENGTHS)}</select></label>'
        f'<label>Outcome <select name="outcome"><option value="">any</option>{options(OUTCOMES)}</select></label>'
        '<label class="tick"><input type="checkbox" name="detailed"> in full detail only</label>'
        '<output name="count" aria-live="polite"></output></form>'
    )


def _row(index: int, item: Item) -> str:
    query = item.query
    text = f"<bdi>{escape(query.query)}</bdi>"
    link = f'<a href="#q{index}">{text}</a>' if item.detailed else text
    length = f"{coordinate(round(item.length_s, 1))} s" if query.windows else "–"
    iou = f"{item.iou:.2f}" if item.outcome in ("hit", "near", "miss") else "–"
    detailed = " data-detailed" if item.detailed else ""
    return (
        f'<tr data-id="q{index}" data-qid="{escape(query.qid)}" data-length="{coordinate(item.length_s)}" '
        f'data-bin="{item.length}" data-iou="{item.iou:.4f}" data-outcome="{item.outcome}"{detailed}>'
        f'<td>{link}{overview(item)}</td><td class="wide quiet">{escape(query.vid)}</td><td class="wide">{length}</td>'
        f'<td>{iou}</td><td class="{item.outcome}"><span aria-hidden="true">{SYMBOLS[item.outcome]}</span> {item.outcome}</td>'
        "</tr>\n"
    )


def _details(page: Page) -> str:
    details = "".join(
        query_detail(index, item, thumbnails=page.pictures, grid=page.patch_grid)
        for index, item in enumerate(page.items)
        if item.detailed
    )
    return f'<section class="details" aria-label="Queries in full detail">{details}</section>\n'


def _dialog() -> str:
    return (
        '<dialog id="detail" aria-label="One query"><div class="tools"><button type="button" name="before">← previous</button>'
        '<button type="button" name="after">next →</button><button type="button" name="close">close</button></div>'
        '<div class="body"></div></dialog>\n'
    )


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
