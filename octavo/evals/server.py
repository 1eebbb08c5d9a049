"""A client of servers that speak OpenAI's completions API: one POST, tried again while there is hope."""

import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.base.errors import BadValue, RequestError, UsageError

__all__ = ["Server", "ServerOptions", "connect", "is_url", "urls_of"]

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass"""
_KEPT = "what is done is kept: bring the server back and give the same command again"
_KEY_HINT = "give --api-key, or set the environment variable OPENAI_API_KEY"
_HINTS = {
    401: _KEY_HINT, 403: _KEY_HINT, 404: "is the name right? --served-model-name is what the server calls it",
    **dict.fromkeys((301, 302, 303, 307, 308), "give the URL that it leads to: a key is not sent on to other places"),
}  # fmt: skip
_SHOWN = 300
_LONGEST_PAUSE = 120.0


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How servers are asked. `retries`: tries after the first; the pause before them doubles from `backoff_seconds`."""

    served_model_name: str | None = None
    """what the servers call the model; None: the only one that each lists"""
    api_key: str | None = field(default=None, repr=False)
    """None: the environment variable OPENAI_API_KEY, if it is set"""
    concurrency: int = 16
    """items that are asked for at once"""
    timeout_seconds: float = 300.0
    """without a byte from the server"""
    retries: int = 6
    backoff_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 1024:
            raise BadValue(f"concurrency: {self.concurrency} (1 to 1024)")
        if not 0 < self.timeout_seconds <= 86400 or self.retries < 0 or self.backoff_seconds < 0:
            raise BadValue(
                f"timeout {self.timeout_seconds} s (above 0, at most 86400), retries {self.retries}, "
                f"back-off {self.backoff_seconds} s (0 or more)"
            )

    @property
    def key(self) -> str | None:
        return self.api_key or os.environ.get("OPENAI_API_KEY") or None


class _MayPass(Exception):
    """A failure that another try may not have; `pause`: seconds that the server asked to wait."""

    def __init__(self, cause: str, pause: float = 0.0):
        super().__init__(cause)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        """None: what leads elsewhere is an error."""
        return


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class Server:
    """`url`: without /v1. `model`: as the server calls it. Many threads may ask at once."""

    url: str
    model: str
    options: ServerOptions
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    """once set nothing is tried again, so that a run that failed ends soon"""

    def complete(self, **wanted: Any) -> dict[str, Any]:
        """The reply to a greedy completion. Raises RequestError where the server refuses this request, UsageError
        where it does not answer, or answers no completion."""
        reply = self.ask("/v1/completions", {"model": self.model, "temperature": 0, "stream": False, **wanted})
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UsageError(f"{self.url} answered without `choices`: {_short(json.dumps(reply))}")
        return reply

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A JSON object: the reply to a GET, or to a POST of `body`."""
        cause = ""
        for attempt in range(self.options.retries + 1):
            try:
                return self._once(path, body)
            except _MayPass as error:
                cause, pause = str(error), max(error.pause, self.options.backoff_seconds * 2**attempt)
            if attempt == self.options.retries or self.stopped.wait(min(pause, _LONGEST_PAUSE)):
                break
        raise UsageError(f"{self.url} gave no answer in {attempt + 1} tries: {cause}", hint=_KEPT)

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "octavo"}
        if self.options.key:
            headers["Authorization"] = f"Bearer {self.options.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with _OPENER.open(request, timeout=self.options.timeout_seconds) as reply:
                text = reply.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            raise self._refusal(error, path) from error
        except (OSError, http.client.HTTPException) as error:
            raise _MayPass(str(getattr(error, "reason", None) or error) or type(error).__name__) from error
        try:
            found = json.loads(text)
        except ValueError as error:
            raise _MayPass(f"not JSON: {_short(text)}") from error
        if not isinstance(found, dict):
            raise _MayPass(f"no JSON object: {_short(text)}")
        return found

    def _refusal(self, error: urllib.error.HTTPError, path: str) -> Exception:
        with error:
            try:
                said = _said(error.read().decode("utf-8", "replace"))
            except (OSError, http.client.HTTPException):
                said = ""
        message = f"HTTP {error.code}{': ' if said else ''}{said}"
        if error.code in _AGAIN:
            return _MayPass(message, _pause(error.headers.get("Retry-After")))
        return RequestError(f"{self.url}{path} refused: {message}", hint=_HINTS.get(error.code))


def connect(url: str, options: ServerOptions) -> Server:
    """A server and the name of its model. Raises UsageError where it does not answer or has several models."""
    server = Server(url, options.served_model_name or "", options)
    if server.model:
        return server
    data = server.ask("/v1/models").get("data")
    names = [str(model["id"]) for model in data if isinstance(model, dict) and "id" in model] if data else []
    if len(names) != 1:
        raise UsageError(
            f"{url} lists {len(names)} models" + (f": {', '.join(names[:20])}" if names else ""),
            hint="name one with --served-model-name",
        )
    return Server(url, names[0], options)


def is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def urls_of(given: str) -> list[str]:
    """From URLs with commas between them, each with or without /v1 at its end. Raises BadValue."""
    found: list[str] = []
    for one in given.split(","):
        url = one.strip().rstrip("/").removesuffix("/v1/completions").removesuffix("/v1").rstrip("/")
        try:
            parts = urllib.parse.urlsplit(url)
            fine = is_url(url) and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fine = False
        if not fine:
            raise BadValue(f"no URL of a server: `{one}`", hint="such as http://localhost:8000")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BadValue(f"the URL of {parts.hostname} has more than a host and a path", hint=_KEY_HINT)
        if url in found:
            raise BadValue(f"{url} is given twice", hint="the control asks the first server again by itself")
        found.append(url)
    return found


def _pause(text: str | None) -> float:
    """Seconds from a Retry-After header: a number, or a date."""
    if not text:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _said(text: str) -> str:
    """The message of an error's body: `error.message` (OpenAI), `message` (vLLM), `detail` (FastAPI), or all of it."""
    try:
        found = json.loads(text)
    except ValueError:
        return _short(text)
    if isinstance(found, dict):
        inner = found.get("error", found)
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("detail") or inner
        return _short(inner if isinstance(inner, str) else json.dumps(inner))
    return _short(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
