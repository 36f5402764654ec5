"""The web server of the labelling page, on 127.0.0.1: plain FastAPI, and what is printed when it is closed."""

from __future__ import annotations

import secrets
import shlex
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from costl.converters.label_studio_export import CONFIG
from costl.demo.security import HOST, PLAIN_POLICY, protect
from costl.demo.served_files import file_response
from costl.demo.server import open_socket
from costl.label.page import asset, page_html
from costl.label.proposals import Proposals
from costl.label.proxies import Proxies
from costl.label.rows import Label
from costl.label.session import LabelSession, shown_label
from costl.label.store import Conflict, open_labels
from costl.label.videos import LabelVideo, LabelVideos
from costl.pipeline.errors import CostlError, UsageError, VideoError, first_few
from costl.pipeline.feature_store import user_folder
from costl.pipeline.formats.files import refuse_suffix

FILE = "labels.jsonl"
_NO_FASTAPI = "costl label needs FastAPI, which is not installed. Install it: pip install 'costl[demo]'."
_LARGEST_BODY = 1_000_000  # bytes


def label(
    videos: Path,
    *,
    out: Path | None = None,
    run: Path | str | None = None,
    weights: str | None = None,
    device: str = "auto",
    port: int = 7860,
    on_ready: Callable[[str], None] = lambda address: None,
    on_close: Callable[[str], None] = lambda text: None,
) -> None:
    """Serves the page that labels the videos of a folder, until it is interrupted; then the labels are written to `out`.

    `out` is by default FILE in the folder. `run`, `weights` and `device` are those of `open_library`, for proposals. Calls
    `on_ready` with the address, and `on_close` with the number of labels and the next command. Raises UsageError if FastAPI
    is missing, for a folder without videos, a label file with bad rows and a port that is in use; BusyError when another
    process labels into the same file; CostlError when the disk refuses.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise UsageError(_NO_FASTAPI)
    import uvicorn

    listed = LabelVideos(videos)
    path = out or videos / FILE
    refuse_suffix(path, [".jsonl"])
    with ExitStack() as background:
        with open_labels(path) as store, open_socket(port) as server_socket:
            proposals = Proposals(videos, run=run, weights=weights, device=device)
            session = LabelSession(store, listed, proposals, Proxies(user_folder()))
            background.callback(session.close)
            proposals.indexing.start()
            config = uvicorn.Config(build_label_app(session), log_level="warning", timeout_graceful_shutdown=3)
            server = uvicorn.Server(config)
            session.has_ended = lambda: server.should_exit
            on_ready(f"http://{HOST}:{server_socket.getsockname()[1]}/")
            with suppress(KeyboardInterrupt):  # the usual end
                server.run(sockets=[server_socket])
        # The labels are in their file; only now what may take a while is stopped.
        on_close(closing_text(store.labels(), listed, path=path, folder=videos))


def build_label_app(session: LabelSession) -> Any:
    """The FastAPI app of the page. It serves the listed videos only, under keys that cannot be guessed.

    What changes something needs the session's token, which pages of other sites cannot read.
    """
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def check_order(request: Any, call_next: Any) -> Any:
        if request.method not in ("GET", "HEAD"):
            token = request.headers.get("x-costl-token", "")
            if not secrets.compare_digest(token.encode(), session.token.encode()):
                return Response(status_code=403)
            length = request.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > _LARGEST_BODY:
                return Response(status_code=413)
        return await call_next(request)

    protect(app, PLAIN_POLICY)

    @app.exception_handler(CostlError)
    def problem(_: Any, error: CostlError) -> Any:
        return JSONResponse({"problem": str(error)}, status_code=422 if isinstance(error, UsageError | VideoError) else 507)

    def listed(key: str) -> LabelVideo:
        video = session.videos.with_key(key)
        if video is None:
            raise HTTPException(404)
        return video

    @app.get("/")
    def page() -> Any:
        return HTMLResponse(page_html())

    @app.get("/label/files/{name}")
    def file_of_page(name: str) -> Any:
        text = asset(name)
        if text is None:
            raise HTTPException(404)
        return Response(text, media_type="text/css" if name.endswith(".css") else "text/javascript")

    @app.get("/label/state")
    def state() -> Any:
        return session.state()

    @app.get("/label/changes")
    def changes(count: int, video: str = "") -> Any:
        return session.changes(max(0, count), video)

    @app.get("/label/labels/{key}")
    def labels(key: str) -> Any:
        return session.labels(listed(key))

    @app.get("/label/playback/{key}")
    def playback(key: str) -> Any:
        return session.playback(listed(key))

    @app.get("/label/videos/{key}")
    def file(key: str) -> Any:
        return file_response(listed(key).path)

    @app.get("/label/proxies/{key}")
    def proxy(key: str) -> Any:
        return file_response(session.proxies.path(listed(key)))

    @app.get("/label/pictures/{key}")
    def picture(key: str, at: float) -> Any:
        jpeg = session.picture(listed(key), at)
        if jpeg is None:
            raise HTTPException(404)
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/label/export")
    def export() -> Any:
        headers = {"Content-Disposition": f'attachment; filename="{FILE}"'}
        return Response(session.text(), media_type="application/x-ndjson", headers=headers)

    @app.get("/label/label-studio")
    def label_studio() -> Any:
        headers = {"Content-Disposition": 'attachment; filename="label-studio.json"'}
        return Response(session.label_studio(), media_type="application/json", headers=headers)

    @app.get("/label/label-studio.xml")
    def label_studio_configuration() -> Any:
        headers = {"Content-Disposition": 'attachment; filename="label-studio.xml"'}
        return Response(CONFIG, media_type="application/xml", headers=headers)

    @app.post("/label/edits")
    def edit(sent: dict[str, Any]) -> Any:
        try:
            return session.edit(sent)
        except Conflict as conflict:
            return JSONResponse({"current": conflict.current and shown_label(conflict.current)}, status_code=409)

    @app.post("/label/proposals")
    async def propose(sent: dict[str, Any]) -> Any:
        return await session.propose(str(sent.get("video", "")), str(sent.get("sentence", "")))

    @app.post("/label/proxies/{key}")
    def make_proxy(key: str) -> Any:
        video = listed(key)
        session.proxies.start(video)
        return session.proxies.status(video)

    @app.post("/label/index/{order}")
    def index(order: str) -> Any:
        if order not in ("start", "stop"):
            raise HTTPException(404)
        (session.proposals.indexing.start if order == "start" else session.proposals.indexing.stop)()
        return session.proposals.status()

    return app


def closing_text(labels: list[Label], videos: LabelVideos, *, path: Path, folder: Path) -> str:
    """How many labels there are, what has to be renamed before extraction, and the commands that train on them."""
    moments = sum(len(label.query.windows) for label in labels)
    absent = sum(label.is_absent for label in labels)
    named = {label.video for label in labels}
    here = sum(video.vid in named for video in videos.all)
    counts = f"{_many(len(labels), 'label')} of {here} of {_many(len(videos.all), 'video')}: {_many(moments, 'moment')}"
    lines = [f"{path}: {counts}" + (f", {absent} not in their video." if absent else ".")]
    shared = sorted(vid for vid, count in Counter(video.vid for video in videos.all).items() if count > 1)
    if labels and shared:
        lines.append(f"Several files are called {first_few(map(repr, shared))}: rename all but one of each before you go on.")
    if labels:
        source, place, cache = (shlex.quote(str(name)) for name in (path, folder, f"{path.stem}.h5"))
        lines += [
            "Next:",
            f"  costl prepare {source} --videos {place} --out labels/",
            f"  costl extract --videos {place} --annotations labels/ --out {cache}",
            f"  costl train --cache {cache}",
        ]
    return "\n".join(lines)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
