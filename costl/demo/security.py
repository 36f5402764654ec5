"""What every page of the demo refuses: other hosts' names, other sites' orders, and requests to other hosts."""

from __future__ import annotations

from typing import Any

HOST = "127.0.0.1"
# A page that Gradio makes: the browser fetches from this server only, even if a library's page names another host.
GRADIO_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
PLAIN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def protect(app: Any, content_policy: str) -> None:
    """Adds the checks and the security headers to a FastAPI app. An app that is mounted in it keeps its own policy."""
    from fastapi import Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    headers = {
        "Content-Security-Policy": content_policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    # Against DNS rebinding: refuses requests whose Host header names another site.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def check_and_add_headers(request: Any, call_next: Any) -> Any:
        # Another site's page may send a form here, but cannot read the reply.
        foreign = request.method != "GET" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        response = Response(status_code=403) if foreign else await call_next(request)
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        return response
