"""The demo in the browser: Gradio on 127.0.0.1, for this machine alone; no telemetry, nothing from any other host."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from costl.ask.asker import load
from costl.demo.page import SCRIPT, STYLE
from costl.demo.sessions import Desk
from costl.pipeline.errors import UsageError

HOST = "127.0.0.1"
# Whatever a library's page may name, the browser fetches from here only.
RULES = {
    "Content-Security-Policy": (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def demo(
    where: Path | str | None = None,
    *,
    videos: Path | None = None,
    weights: str | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    port: int = 7860,
    max_mb: int = 2048,
    max_minutes: int = 180,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves the demo of a model (see `costl.load`) until it is interrupted; `ready` hears its address.

    Uploads go to a folder that is deleted at the end. Raises UsageError without Gradio, for a folder that is none and
    for a port that is taken.
    """
    gradio = import_gradio()
    asker = load(where, weights=weights, cache_dir=cache_dir, device=device)
    desk = Desk(asker, folder=videos, max_minutes=max_minutes)
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="costl-demo-") as uploads, _listening(port) as server_socket:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = build_app(gradio, desk, max_mb=max_mb)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        ready(f"http://{HOST}:{server_socket.getsockname()[1]}/")
        server.run(sockets=[server_socket])


def import_gradio() -> Any:
    """Gradio, told before it is loaded that nobody is to be told anything. Raises UsageError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise UsageError(
            "costl demo needs Gradio, which is not installed. Install it: pip install 'costl[demo]'."
        ) from error
    return gradio


def build_app(gradio: Any, desk: Desk, *, max_mb: int) -> Any:
    """The page and the one other thing it serves: videos that somebody chose, by a key that cannot be guessed."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page of somebody else whose name was made to mean this machine is not answered.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def add_rules(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers.update(RULES)
        return response

    @app.get("/videos/{key}")
    def video(key: str) -> Any:
        path = desk.file(key)
        if path is None or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path)

    return gradio.mount_gradio_app(
        app,
        _page(gradio, desk),
        path="/",
        server_name=HOST,
        max_file_size=max_mb * 1024 * 1024,
        footer_links=[],
        allowed_paths=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        show_error=True,
        # System fonts: the default theme asks Google for its own.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
    )


def _page(gradio: Any, desk: Desk) -> Any:
    names = desk.names()
    with gradio.Blocks(title="CoSTL", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.HTML("<h1>Ask a video</h1><p>It shows where a sentence comes true.</p>", elem_id="costl-title")
        key = gradio.State("")
        with gradio.Row():
            choice = gradio.Dropdown(
                names, value=None, label="Video", elem_id="costl-choice", visible=bool(names), scale=1
            )
            upload = gradio.File(
                label="or upload one" if names else "Upload a video", file_types=["video"], type="filepath",
                elem_id="costl-upload", height=150, scale=1,
            )  # fmt: skip
        player = gradio.HTML("", elem_id="costl-player")
        with gradio.Row(equal_height=True):
            query = gradio.Textbox(
                label="What to look for", placeholder="a dog catches a ball", max_lines=1, max_length=500, scale=5,
                elem_id="costl-query",
            )  # fmt: skip
            ask = gradio.Button("Ask", variant="primary", scale=1, min_width=90, elem_id="costl-ask")
        result = gradio.HTML("", elem_id="costl-result", js_on_load=SCRIPT)
        _wire(gradio, desk, key=key, choice=choice, upload=upload, player=player, query=query, ask=ask, result=result)
    return page


def _wire(gradio: Any, desk: Desk, **parts: Any) -> None:
    def choose(name: str | None, request: Any) -> tuple[str, str, str]:
        desk.changed(request.session_hash)
        return (*desk.take(name, None), "")

    def take_upload(file: str | None, name: str | None, request: Any) -> tuple[str, str, str]:
        desk.changed(request.session_hash)
        return (*desk.take(name, file), "")

    def change(request: Any) -> str:
        desk.changed(request.session_hash)
        return ""

    def answer(key: str, query: str, request: Any) -> Any:
        found = desk.answer(request.session_hash, key, query or "")
        return gradio.skip() if found is None else found

    for handler in (choose, take_upload, change, answer):
        handler.__annotations__["request"] = (
            gradio.Request
        )  # Gradio looks for its own type, which this module has only now
    shown = [parts["key"], parts["player"], parts["result"]]
    at_once = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    parts["choice"].change(choose, parts["choice"], shown, **at_once)
    parts["upload"].change(take_upload, [parts["upload"], parts["choice"]], shown, **at_once)
    parts["query"].input(change, None, parts["result"], **at_once)
    asked = [parts["key"], parts["query"]]
    gradio.on(
        [parts["ask"].click, parts["query"].submit],
        answer,
        asked,
        parts["result"],
        concurrency_limit=1,
        trigger_mode="multiple",
        api_visibility="private",
    )


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"port {port} of {HOST} is taken ({error.strerror}). Choose another with --port, or 0 for any."
        ) from error
    listener.listen()  # whoever is told the address may come before the server does, and waits
    return listener
