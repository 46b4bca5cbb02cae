"""The routes of the two pages and of their files, with what a browser may do on them.

Nothing here knows a user: the pages ask for a key themselves, and then talk to /v1 as any other client.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"
PAGES = {"/": "dialogue.html", "/annotate": "annotate.html"}
# Scripts, styles and requests: this host only, and nothing inline. Images come from /v1 by scripts, which hold the key.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # asked for again each time, so that all files are of one version; unchanged ones are not sent
}


class Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_pages(api: FastAPI) -> None:
    api.mount("/pages", Files(directory=STATIC))
    for path, file in PAGES.items():
        api.add_api_route(path, _page(file), methods=["GET", "HEAD"], include_in_schema=False)


def _page(file: str) -> Callable[[], FileResponse]:
    def page() -> FileResponse:
        return FileResponse(STATIC / file, headers=HEADERS)

    return page
