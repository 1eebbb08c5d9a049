"""Errors as clients of OpenAI's API know them: `{"error": {"message", "type", "code", "param"}}`."""

import logging
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from octavo.base.errors import OctavoError
from octavo.serve.inbox import EngineGone
from octavo.serve.words import TooManyTokens

__all__ = ["ApiError", "api_error_of", "api_error_of_bug", "error_body", "install"]

log = logging.getLogger("octavo")

_SHOWN = 500
_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    413: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_error", 503: "service_unavailable",
}  # fmt: skip
_CODES = {413: "body_too_long", 429: "queue_full"}


class ApiError(Exception):
    """`status` is HTTP's; `code` a short name that programs can tell apart."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None,
                 retry_after: int | None = None):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            self.headers["WWW-Authenticate"] = 'Bearer, Basic realm="octavo"'

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, self.code, self.param)

    def response(self) -> Response:
        return Response(msgspec.json.encode(self.body()), self.status, self.headers, "application/json")


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "internal_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def api_error_of(error: OctavoError) -> ApiError:
    """What a client is told of an error of ours: 503 for an engine that is gone, else 400."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, EngineGone):
        return ApiError(503, message, "engine_unavailable", retry_after=2)
    if isinstance(error, TooManyTokens):
        return ApiError(400, message, "context_length_exceeded", "prompt")
    return ApiError(400, message[: 4 * _SHOWN])


def api_error_of_bug(where: str) -> ApiError:
    """Called in an `except` block: the log gets all of it, the client a number."""
    log.exception("%s broke", where)
    return ApiError(500, "an error of the server's own; its log says more", "internal")


def install(app: FastAPI) -> None:
    """Every foreseen error of every route in the one form; `Guard` has those that are not."""

    @app.exception_handler(ApiError)
    async def of_api(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(OctavoError)
    async def of_ours(_: Request, error: OctavoError) -> Response:
        return api_error_of(error).response()

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def of_fields(request: Request, error: RequestValidationError | ValidationError) -> Response:
        first = error.errors()[0]
        kind = request.headers.get("content-type", "")
        if first.get("loc") == ("body",) and "json" not in kind.lower():  # it was not even read as JSON
            given = f"is `{kind[:100]}`" if kind else "is missing"
            return ApiError(415, f"the header Content-Type {given}; send application/json").response()
        where = [str(part) for part in first.get("loc", ()) if part != "body"]
        param = where[0] if where else None
        message = str(first.get("msg", "invalid")).removeprefix("Value error, ")
        path = ".".join(where)
        return ApiError(
            400, f"{path}: {message}"[:_SHOWN] if path else message[:_SHOWN], "invalid_value", param
        ).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"{message}: {request.method} {request.url.path[:_SHOWN]} (GET /openapi.json lists the routes)"
        made = ApiError(error.status_code, message, _CODES.get(error.status_code))
        made.headers.update(error.headers or {})
        return made.response()

    @app.exception_handler(UnicodeEncodeError)
    async def of_text(_: Request, error: UnicodeEncodeError) -> Response:
        return ApiError(400, "a text holds a lone surrogate, which is not Unicode text", "invalid_value").response()
