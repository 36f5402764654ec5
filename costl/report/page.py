"""A report as one HTML page: everything in it is escaped, nothing in it comes from elsewhere, equal runs give equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.preview.thumbnails import Thumbnail
from costl.report.charts import curve, escape, interval, number, strip
from costl.report.detail import maps, pictures_once, story
from costl.report.item import LENGTHS, OUTCOMES, Item

FILES = Path(__file__).parent / "templates"
GROUPS = {
    "MR-full": "Moments of any length",
    "MR-short": "Short moments",
    "MR-middle": "Middle moments",
    "MR-long": "Long moments",
    "HL-min-Fair": "Highlights rated Fair or better",
    "HL-min-Good": "Highlights rated Good or better",
    "HL-min-VeryGood": "Highlights rated Very Good",
}
WATCHED = {"val": "validation", "test": "the test split, which chose the epoch"}
MARKS = {"hit": "●", "near": "◐", "miss": "○", "unlabelled": "–", "unanswered": "×"}


@dataclass(frozen=True)
class Page:
    """All that a report shows. `numbers` are percentages with their `intervals` where they are known; `rows` the epochs
    of training; `items` in the order of the list; `pictures` by the name that shots call them."""

    run: str
    split: str
    numbers: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    notes: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    select: str
    kept: int | None
    items: Sequence[Item]
    pictures: Mapping[str, Thumbnail]
    patch_grid: tuple[int, int]


def to_html(page: Page) -> bytes:
    """The page in UTF-8. It may run its own script and show its own pictures, and may not ask for anything else."""
    style, script = ((FILES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; img-src data:"
    title = f"CoSTL: {page.split} of {page.run}"
    painted = _json(maps(page.items, page.patch_grid))
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#queries">Skip to the queries</a>\n{_header(page)}<main>\n'
        f"{_numbers(page)}{_training(page)}{_queries(page)}{_stories(page)}</main>\n{_dialog()}{pictures_once(page.pictures)}"
        f'<script type="application/json" id="maps">{painted}</script>\n<script>{script}</script>\n'
        "</body>\n</html>\n"
    )
    return text.encode("utf-8", errors="replace")


def _header(page: Page) -> str:
    counts = {name: sum(item.outcome == name for item in page.items) for name in OUTCOMES}
    said = " · ".join(f"{MARKS[name]} {count} {name}" for name, count in counts.items() if count)
    notes = "".join(f"<li>{escape(note)}</li>" for note in page.notes)
    return (
        f"<header>\n<p class='quiet'>CoSTL report</p>\n<h1>{escape(page.split)} <span>of {escape(page.run)}</span></h1>\n"
        f"<p>{len(page.items)} queries: {said}</p>\n"
        + (f'<ul class="notes" aria-label="Notes">{notes}</ul>\n' if notes else "")
        + "</header>\n"
    )


def _numbers(page: Page) -> str:
    groups: dict[str, list[str]] = {}
    for name in page.numbers:
        groups.setdefault(name.rpartition("-")[0], []).append(name)
    tables = "".join(_group(page, group, names, place) for place, (group, names) in enumerate(groups.items()))
    about = " Lines across the bars: bootstrap intervals over queries, 95 %." if page.intervals else ""
    return (
        f'<section aria-labelledby="numbers"><h2 id="numbers">Numbers</h2><p class="quiet">Percentages.{about}</p>'
        f'<div class="groups">{tables}</div></section>\n'
    )


def _group(page: Page, group: str, names: Sequence[str], place: int) -> str:
    rows = []
    for row, name in enumerate(names):
        value, bounds = page.numbers[name], page.intervals.get(name)
        measure = name.rpartition("-")[2]
        span = f'<span class="quiet">{bounds[0]:.1f} to {bounds[1]:.1f}</span>' if bounds else ""
        bar = interval(f"n{place}-{row}", f"{measure}", value, bounds)
        rows.append(
            f'<tr><th scope="row">{escape(measure)}</th><td class="bar">{bar}</td><td class="value">{value:.2f} {span}</td></tr>'
        )
    return (
        f"<table><caption>{escape(GROUPS.get(group, group or 'All'))}</caption><tbody>{''.join(rows)}</tbody></table>"
    )


def _training(page: Page) -> str:
    if not page.rows:
        return ""
    kept = f" The dotted line is epoch {page.kept}, whose weights are used." if page.kept else ""
    return (
        f'<section aria-labelledby="training"><h2 id="training">Training</h2><p class="quiet">{len(page.rows)} epochs, '
        f"each number on its own scale.{kept}</p>{_cards(page)}{_epochs_table(page)}</section>\n"
    )


def _cards(page: Page) -> str:
    """A card for every number: the one that chose the epoch, the losses and the rate; the others wait to be opened."""
    split = _watched(page)
    measured = dict.fromkeys(name for row in page.rows for name in row.get(split, {}))
    losses = dict.fromkeys(name for row in page.rows for name in row.get("losses", {}))
    rates = [(row["epoch"], row["learning_rate"]) for row in page.rows if "learning_rate" in row]
    chosen = [page.select] if page.select in measured else []
    cards = {name: _card(page, split, name, place) for place, name in enumerate(measured)}
    first = [cards.pop(name) for name in chosen]
    first += [_card(page, "losses", name, place) for place, name in enumerate(losses)]
    first += [curve("rate", "learning rate", rates, kept=page.kept, css="plain")] if rates else []
    others = "".join(cards.values())
    more = (
        f'<details><summary>The other numbers on {WATCHED[split]}</summary><div class="cards">{others}</div></details>'
    )
    return f'<div class="cards">{"".join(first)}</div>{more if others else ""}'


def _watched(page: Page) -> str:
    """The split that chose the epoch."""
    return "test" if any("test" in row for row in page.rows) else "val"


def _card(page: Page, kind: str, name: str, place: int) -> str:
    points = [(row["epoch"], row[kind][name]) for row in page.rows if name in row.get(kind, {})]
    title, css = (name, "guess") if kind in WATCHED else (f"{name} loss", "truth")
    return curve(f"{kind}{place}", title, points, kept=page.kept, css=css)


def _epochs_table(page: Page) -> str:
    losses = list(dict.fromkeys(name for row in page.rows for name in row.get("losses", {})))
    split = _watched(page)
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
        '<details><summary>The same as a table</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Training by epoch"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _queries(page: Page) -> str:
    detailed = sum(item.detailed for item in page.items)
    heads = (("query", "Query", ""), ("video", "Video", "wide"), ("length", "Length", "wide"), ("iou", "IoU", ""))
    columns = "".join(_column(*head) for head in [*heads, ("outcome", "Outcome", "")])
    rows = "".join(_row(place, item) for place, item in enumerate(page.items))
    return (
        f'<section aria-labelledby="queries"><h2 id="queries" tabindex="-1">Queries</h2><p class="quiet">Worst first. '
        f"{detailed} of {len(page.items)} open in full detail, spread from the worst to the best.</p>{_filters()}"
        '<table class="list"><caption class="unseen">Queries with the overlap of their first predicted moment. The buttons '
        f"in the head sort.</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"
        '<p id="none" class="quiet" hidden>No query is like that. Loosen the filters.</p></section>\n'
    )


def _column(key: str, name: str, css: str) -> str:
    order = ' aria-sort="ascending"' if key == "iou" else ""
    button = f'<button type="button">{name}<i aria-hidden="true"></i></button>'
    return f'<th scope="col" class="{css}" data-key="{key}"{order}>{button}</th>'


def _filters() -> str:
    def options(choices: Mapping[str, str]) -> str:
        return "".join(f'<option value="{key}">{escape(said)}</option>' for key, said in choices.items())

    return (
        '<form class="filters needs-script" role="search" aria-label="Filter the queries">'
        '<label>Text <input type="search" name="text" autocomplete="off" placeholder="word, video or id"></label>'
        f'<label>True moment <select name="moment"><option value="">of any length</option>{options(LENGTHS)}</select></label>'
        f'<label>Outcome <select name="outcome"><option value="">any</option>{options(OUTCOMES)}</select></label>'
        '<label class="tick"><input type="checkbox" name="detailed"> in full detail only</label>'
        '<output name="count" aria-live="polite"></output></form>'
    )


def _row(place: int, item: Item) -> str:
    query = item.query
    text = f"<bdi>{escape(query.query)}</bdi>"
    said = f'<a href="#q{place}">{text}</a>' if item.detailed else text
    length = f"{number(round(item.length_s, 1))} s" if query.windows else "–"
    iou = f"{item.iou:.2f}" if item.outcome in ("hit", "near", "miss") else "–"
    return (
        f'<tr data-id="q{place}" data-qid="{escape(query.qid)}" data-length="{number(item.length_s)}" data-bin="{item.length}" '
        f'data-iou="{item.iou:.4f}" data-outcome="{item.outcome}"{" data-detailed" if item.detailed else ""}>'
        f'<td>{said}{strip(item)}</td><td class="wide quiet">{escape(query.vid)}</td><td class="wide">{length}</td><td>{iou}</td>'
        f'<td class="{item.outcome}"><span aria-hidden="true">{MARKS[item.outcome]}</span> {item.outcome}</td></tr>\n'
    )


def _stories(page: Page) -> str:
    stories = "".join(
        story(place, item, pictures=page.pictures, grid=page.patch_grid)
        for place, item in enumerate(page.items)
        if item.detailed
    )
    return f'<section class="stories" aria-label="Queries in full detail">{stories}</section>\n'


def _dialog() -> str:
    return (
        '<dialog id="look" aria-label="One query"><div class="tools"><button type="button" name="before">← previous</button>'
        '<button type="button" name="after">next →</button><button type="button" name="close">close</button></div>'
        '<div class="body"></div></dialog>\n'
    )


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
