"""The page at `/`: three files, served so that a browser runs nothing else and asks nobody else."""

from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

from octavo.serve.errors import ApiError

__all__ = ["FILES", "router"]

FILES = {"index.html": "text/html", "style.css": "text/css", "app.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> Response:
        return _file("index.html")

    @routes.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in FILES:
            raise ApiError(404, "Not Found")
        return _file(name)

    return routes


def _file(name: str) -> Response:
    headers = {
        "Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }  # fmt: skip
    return Response(_read(name), 200, headers, FILES[name])


@cache
def _read(name: str) -> bytes:
    return resources.files("octavo.serve").joinpath("web", name).read_bytes()
