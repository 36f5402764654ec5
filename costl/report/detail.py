"""The detail view of one query: its charts, its pictures, and the data of the attention maps that the script draws."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from costl.pipeline.preview.thumbnails import Thumbnail
from costl.predict.attention_maps import AttentionMaps
from costl.report.charts import coordinate, escape, saliency, timeline
from costl.report.query import OUTCOMES, ClipPicture, Item, clock


def query_detail(index: int, item: Item, *, thumbnails: Mapping[str, Thumbnail], grid: tuple[int, int]) -> str:
    """The article about a query: timeline, saliency, and its pictures. `grid` is (rows, columns) of the patches."""
    query = item.query
    facts = [query.vid, clock(query.duration_s), f"query {query.qid}", _outcome(item)]
    pictures = _pictures(index, item, thumbnails, grid)
    return (
        f'<article id="q{index}" aria-labelledby="h{index}"><h3 id="h{index}" tabindex="-1"><bdi>{escape(query.query)}</bdi></h3>'
        f'<p class="quiet">{" · ".join(escape(fact) for fact in facts)}</p>'
        f'<p class="key"><span class="truth">truth</span> <span class="guess">prediction, score · IoU</span></p>'
        f"{timeline(f't{index}', item)}{saliency(f's{index}', item)}{pictures}</article>\n"
    )


def picture_definitions(thumbnails: Mapping[str, Thumbnail]) -> str:
    """An invisible SVG that defines every picture once. The detail views refer to the pictures by id."""
    if not thumbnails:
        return ""
    images = "".join(
        f'<image id="{picture_id}" width="{thumbnail.width}" height="{thumbnail.height}" '
        f'href="data:image/jpeg;base64,{base64.b64encode(thumbnail.jpeg).decode()}"/>\n'
        for picture_id, thumbnail in sorted(thumbnails.items())
    )
    return f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>\n{images}</defs></svg>\n'


def map_data(items: Sequence[Item], grid: tuple[int, int]) -> dict[str, Any]:
    """The attention maps for the script: for every picture the weights of patches and words, in thousandths."""
    maps = {
        f"m{index}-{i}": _map(picture.maps)
        for index, item in enumerate(items)
        for i, picture in enumerate(item.pictures)
        if picture.maps is not None
    }
    return {"rows": grid[0], "columns": grid[1], "shots": maps}


def _outcome(item: Item) -> str:
    if item.outcome in ("hit", "near", "miss"):
        return f"{item.outcome}, IoU of the first moment {item.iou:.2f}"
    return OUTCOMES[item.outcome]


def _pictures(index: int, item: Item, thumbnails: Mapping[str, Thumbnail], grid: tuple[int, int]) -> str:
    if not item.pictures:
        return ""
    figures = "".join(
        _figure(f"m{index}-{i}", picture, thumbnails[picture.picture_id], grid)
        for i, picture in enumerate(item.pictures)
    )
    return f'{_word_buttons(item)}<div class="shots">{figures}</div>'


def _word_buttons(item: Item) -> str:
    """The buttons that choose a map: the one of the whole sentence (step one), or that of one word (step two)."""
    maps = [picture.maps for picture in item.pictures if picture.maps is not None]
    if not maps:
        return ""
    weights = np.mean([one.word_weights[0] for one in maps], axis=0) if maps[0].word_weights.size else np.zeros(0)
    buttons = ""
    for i, (word, weight) in enumerate(zip(maps[0].words, weights, strict=False)):
        relative = coordinate(float(weight / weights.max()))
        buttons += (
            f'<button type="button" aria-pressed="false" data-word="{i}" style="--weight:{relative}">'
            f"{escape(word)}<small>{round(100 * float(weight))} %</small></button>"
        )
    label = "Step two, one word and its weight:" if buttons else ""
    return (
        f'<div class="words needs-script" role="group" aria-label="Where the model looked, for">'
        f'<span>Step one:</span><button type="button" aria-pressed="true" data-word="-1">the whole sentence</button>'
        f'<button type="button" aria-pressed="false" data-word="-2">no map</button>'
        f"<span>{label}</span>{buttons}</div>"
    )


def _figure(map_id: str, picture: ClipPicture, thumbnail: Thumbnail, grid: tuple[int, int]) -> str:
    left, top, width, height = thumbnail.crop
    translate = f"{coordinate(left * thumbnail.width)} {coordinate(top * thumbnail.height)}"
    scale = f"{width * thumbnail.width:.4f} {height * thumbnail.height:.4f}"
    outline = _outline(picture.maps, grid) if picture.maps is not None else ""
    label = escape(picture.label)
    time = clock(picture.centre_s)
    return (
        f'<figure class="shot"><svg viewBox="0 0 {thumbnail.width} {thumbnail.height}" role="img" aria-labelledby="{map_id}-t">'
        f'<title id="{map_id}-t">{label}, at {time}</title><use href="#{picture.picture_id}"/>'
        f'<g class="map" data-map="{map_id}" transform="translate({translate}) scale({scale})">'
        f'<g class="heat"></g>{outline}</g></svg>'
        f'<figcaption>{label} · {time}<span class="peak" data-peak="{map_id}"></span></figcaption></figure>'
    )


def _outline(maps: AttentionMaps, grid: tuple[int, int]) -> str:
    """The outlines of the patches on the short list, in the unit square of CLIP's input."""
    rows, columns = grid
    width = 1 / columns
    height = 1 / rows
    boxes = "".join(
        f"M{patch % columns / columns:.4f} {patch // columns / rows:.4f}h{width:.4f}v{height:.4f}h-{width:.4f}z"
        for patch in np.flatnonzero(maps.short_list[0]).tolist()
    )
    return f'<path class="chosen" d="{boxes}"/>' if boxes else ""


def _map(maps: AttentionMaps) -> dict[str, Any]:
    short_list = np.flatnonzero(maps.short_list[0])
    return {
        "share": _thousandths(maps.share[0]),
        "chosen": short_list.tolist(),
        "words": [_thousandths(row[short_list]) for row in maps.attention[0]],
        "nothing": _thousandths(maps.null_attention[0]),
    }


def _thousandths(values: np.ndarray) -> list[int]:
    return (values * 1000).round().astype(int).tolist()
