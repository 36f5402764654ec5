"""One query of a report in full detail: its charts, its pictures, and the maps that the page's script paints over them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from costl.pipeline.preview.thumbnails import Thumbnail
from costl.predict.attention_maps import Looks
from costl.report.charts import escape, number, saliency, timeline
from costl.report.item import OUTCOMES, Item, Shot, clock


def story(place: int, item: Item, *, pictures: Mapping[str, Thumbnail], grid: tuple[int, int]) -> str:
    """The article of a query: timeline, saliency, and its pictures with the maps over them."""
    query = item.query
    about = [query.vid, clock(query.duration_s), f"query {query.qid}", _verdict(item)]
    return (
        f'<article id="q{place}" aria-labelledby="h{place}"><h3 id="h{place}" tabindex="-1"><bdi>{escape(query.query)}</bdi></h3>'
        f'<p class="quiet">{" · ".join(escape(one) for one in about)}</p>'
        f'<p class="key"><span class="truth">truth</span> <span class="guess">prediction, score · IoU</span></p>'
        f"{timeline(f't{place}', item)}{saliency(f's{place}', item)}{_shots(place, item, pictures, grid)}</article>\n"
    )


def pictures_once(pictures: Mapping[str, Thumbnail]) -> str:
    """Every picture once; shots refer to it by name."""
    images = "".join(
        f'<image id="{name}" width="{one.width}" height="{one.height}" '
        f'href="data:image/jpeg;base64,{base64.b64encode(one.jpeg).decode()}"/>\n'
        for name, one in sorted(pictures.items())
    )
    return (
        f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>\n{images}</defs></svg>\n' if images else ""
    )


def maps(items: Sequence[Item], grid: tuple[int, int]) -> dict[str, Any]:
    """What the script paints: of every shot the shares of its patches and the attention of its words, in thousandths."""
    shots = {
        f"m{place}-{i}": _map(shot.looks)
        for place, item in enumerate(items)
        for i, shot in enumerate(item.shots)
        if shot.looks is not None
    }
    return {"rows": grid[0], "columns": grid[1], "shots": shots}


def _verdict(item: Item) -> str:
    if item.outcome in ("hit", "near", "miss"):
        return f"{item.outcome}, IoU of the first moment {item.iou:.2f}"
    return OUTCOMES[item.outcome]


def _shots(place: int, item: Item, pictures: Mapping[str, Thumbnail], grid: tuple[int, int]) -> str:
    if not item.shots:
        return ""
    figures = "".join(_shot(f"m{place}-{i}", shot, pictures[shot.name], grid) for i, shot in enumerate(item.shots))
    return f'{_words(place, item)}<div class="shots">{figures}</div>'


def _words(place: int, item: Item) -> str:
    """The buttons that choose whose map is seen: the whole sentence's of step one, or one word's of step two."""
    seen = [shot.looks for shot in item.shots if shot.looks is not None]
    if not seen:
        return ""
    heard = np.mean([looks.heard[0] for looks in seen], axis=0) if seen[0].heard.size else np.zeros(0)
    words = "".join(
        f'<button type="button" aria-pressed="false" data-word="{i}" style="--heard:{number(float(share / heard.max()))}">'
        f"{escape(word)}<small>{round(100 * float(share))} %</small></button>"
        for i, (word, share) in enumerate(zip(seen[0].words, heard, strict=False))
    )
    label = "Step two, a word and how much it is heard:" if words else ""
    return (
        f'<div class="words needs-script" role="group" aria-label="Where the model looked, for">'
        f'<span>Step one:</span><button type="button" aria-pressed="true" data-word="-1">the whole sentence</button>'
        f'<button type="button" aria-pressed="false" data-word="-2">no map</button>'
        f"<span>{label}</span>{words}</div>"
    )


def _shot(name: str, shot: Shot, picture: Thumbnail, grid: tuple[int, int]) -> str:
    left, top, wide, tall = picture.seen
    box = f"{number(left * picture.width)} {number(top * picture.height)}"
    scale = f"{wide * picture.width:.4f} {tall * picture.height:.4f}"
    chosen = _outline(shot.looks, grid) if shot.looks is not None else ""
    return (
        f'<figure class="shot"><svg viewBox="0 0 {picture.width} {picture.height}" role="img" aria-labelledby="{name}-t">'
        f'<title id="{name}-t">{escape(shot.label)}, at {clock(shot.second)}</title><use href="#{shot.name}"/>'
        f'<g class="map" data-map="{name}" transform="translate({box}) scale({scale})"><g class="heat"></g>{chosen}</g></svg>'
        f"<figcaption>{escape(shot.label)} · {clock(shot.second)}"
        f'<span class="said" data-said="{name}"></span></figcaption></figure>'
    )


def _outline(looks: Looks, grid: tuple[int, int]) -> str:
    """The patches on the short list, in the unit square of what CLIP saw."""
    rows, columns = grid
    boxes = "".join(
        f"M{patch % columns / columns:.4f} {patch // columns / rows:.4f}h{1 / columns:.4f}v{1 / rows:.4f}h-{1 / columns:.4f}z"
        for patch in np.flatnonzero(looks.chosen[0]).tolist()
    )
    return f'<path class="chosen" d="{boxes}"/>' if boxes else ""


def _map(looks: Looks) -> dict[str, Any]:
    chosen = np.flatnonzero(looks.chosen[0])
    return {
        "share": _thousandths(looks.share[0]),
        "chosen": chosen.tolist(),
        "words": [_thousandths(row[chosen]) for row in looks.attention[0]],
        "nothing": _thousandths(looks.nothing[0]),
    }


def _thousandths(values: np.ndarray) -> list[int]:
    return (values * 1000).round().astype(int).tolist()
