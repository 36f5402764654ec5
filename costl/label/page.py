"""The labelling page's HTML, CSS and scripts."""

from __future__ import annotations

from costl.plots.pages import load_templates

# The scripts share their names, in the order of the page. The library page shares base.css.
_SCRIPTS = ("state", "saving", "videos", "player", "moments", "sentences", "proposals", "grades", "drawing", "keys")
_PACKAGES = {"base.css": "costl.demo", "label.css": "costl.label"} | {f"{name}.js": "costl.label" for name in _SCRIPTS}


def page_html() -> str:
    """The HTML of the page."""
    return load_templates("costl.label").get_template("label.html").render(scripts=_SCRIPTS)


def asset(name: str) -> str | None:
    """The text of the page's CSS or of one of its scripts by the name of its file; None for another name."""
    return load_templates(_PACKAGES[name]).get_template(name).render() if name in _PACKAGES else None
