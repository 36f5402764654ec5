"""The labelling page's HTML, CSS and script."""

from __future__ import annotations

from costl.plots.pages import load_templates

# The library page shares the first one.
_ASSETS = {
    "base.css": ("costl.demo", "base.css"),
    "page.css": ("costl.label", "label.css"),
    "label.js": ("costl.label", "label.js"),
}


def page_html() -> str:
    """The HTML of the page."""
    return load_templates("costl.label").get_template("label.html").render()


def asset(name: str) -> str | None:
    """The text of the page's CSS, base.css or page.css, or of its script, label.js; None for another name."""
    if name not in _ASSETS:
        return None
    package, template = _ASSETS[name]
    return load_templates(package).get_template(template).render()
