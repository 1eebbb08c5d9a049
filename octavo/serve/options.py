"""Everything that shapes the front process, frozen and checked where it is born. Pure: no torch."""

import re
from dataclasses import dataclass, field
from typing import Any

from octavo.base.errors import BadValue
from octavo.base.table import Table

__all__ = ["LOG_FORMATS", "ServeOptions"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+")

LOG_FORMATS: Table[str] = Table("log format", {"text": "text", "json": "json"})


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """`engine`: the fields of EngineOptions that are not at their defaults, `model` among them. Raises BadValue."""

    engine: dict[str, Any]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """any of them opens every route; none: every route is open"""
    served_model_names: tuple[str, ...] = ()
    """what requests may call the model; the first is what answers call it. None: the name it was started with"""
    chat_template: str | None = None
    """the text of a Jinja template in the place of the checkpoint's"""
    tool_call_parser: str = "auto"
    prefix_cache_per_key: bool = False
    """whether requests share prefixes only with those of the same API key"""
    allowed_origins: tuple[str, ...] = ()
    """pages of these origins (`https://chat.example`, or `*` for all) may ask from a browser; none: only our own"""
    max_num_queued_reqs: int = 1024
    """requests that may wait beyond those that can run; more are answered 429"""
    max_body_bytes: int = 32 << 20
    max_logprobs: int = 20
    shutdown_timeout: float = 30.0
    """seconds that open requests get to end after SIGTERM"""
    receive_timeout: float = 30.0
    """seconds in which a request must have come, and one more for each 1000 bytes of it"""
    client_timeout: float = 120.0
    """seconds after which a client that does not read its answer is given up"""
    engine_timeout: float = 300.0
    """seconds without a step, while requests are open, after which the engine is restarted"""
    log_format: str = "text"
    otlp_traces_endpoint: str | None = None
    """an OpenTelemetry collector's URL; None: no traces"""

    def __post_init__(self) -> None:
        LOG_FORMATS.resolve(self.log_format)
        for name, low, high in (
            ("port", 0, 65535), ("max_num_queued_reqs", 0, 1 << 20), ("max_body_bytes", 1024, 1 << 30),
            ("max_logprobs", 0, 64), ("shutdown_timeout", 0, 86400), ("client_timeout", 1, 86400),
            ("receive_timeout", 1, 86400), ("engine_timeout", 1, 86400),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadValue(f"{name}: {value} ({low} to {high})")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise BadValue("an API key is empty or not ASCII")
        for origin in self.allowed_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise BadValue(
                    f"allowed_origins: `{origin}` is no origin", hint="scheme, host and port, without a path, or *"
                )
        if self.prefix_cache_per_key and not self.api_keys:
            raise BadValue("prefix_cache_per_key: there are no API keys to keep apart", hint="give --api-key")

    @property
    def model(self) -> str:
        return str(self.engine["model"])

    @property
    def names(self) -> tuple[str, ...]:
        return self.served_model_names or (self.model,)
