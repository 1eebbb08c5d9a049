"""The verb `serve`: an OpenAI-compatible server on a folded cache."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from octavo.base.errors import UsageError
from octavo.cli.engine_flags import EngineFlags
from octavo.cli.output import JsonTarget, check_json_target, write_json

__all__ = ["ServeFlags", "serve"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServeFlags:
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every one."""
    port: int = 8000
    api_key: tuple[str, ...] = ()
    """Who knows one of them may ask; may be repeated. Also read from OCTAVO_API_KEY (several: with commas)."""
    served_model_name: tuple[str, ...] = ()
    """What requests call the model; may be repeated."""
    chat_template: Path | None = None
    """A file with the Jinja template to use in the place of the checkpoint's."""
    tool_call_parser: str = "auto"
    """How the model writes tool calls: auto (by its chat template), hermes, llama3_json or none."""
    prefix_cache_per_key: bool = False
    """Requests find only prefixes that came with the same API key: timing does not tell what other tenants asked."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of this origin may ask from a browser (CORS): https://chat.example, or * for all; may be repeated."""
    max_num_queued_reqs: int = 1024
    """Requests that may wait; more are answered 429."""
    max_logprobs: int = 20
    max_body_bytes: int = 32 << 20
    shutdown_timeout: float = 30.0
    """Seconds that open requests get to end after SIGTERM."""
    receive_timeout: float = 30.0
    """Seconds in which a request must have come, and one more for each 1000 bytes of it."""
    client_timeout: float = 120.0
    """Seconds after which a client that does not read its stream is given up."""
    engine_timeout: float = 300.0
    """Seconds without a word from the engine, while it has work, after which it is started again."""
    log_format: str = "text"
    """text or json"""
    otlp_traces_endpoint: str | None = None
    """Send a trace of each request to this OpenTelemetry collector (OTLP over HTTP); needs `octavo[otel]`."""
    json: JsonTarget = None
    """Where the facts of model and cache go once the server is ready."""


_DEFAULTS = ServeFlags()


def serve(engine: EngineFlags, options: ServeFlags = _DEFAULTS) -> None:
    """Serve a model over HTTP as OpenAI's API does, until Ctrl-C or SIGTERM."""
    from octavo.serve.options import ServeOptions
    from octavo.serve.run import serve as run

    check_json_target(options.json)
    target = options.json
    environment = tuple(key.strip() for key in os.environ.get("OCTAVO_API_KEY", "").split(",") if key.strip())
    named = {one.name for one in fields(ServeOptions)}
    same = {one.name: getattr(options, one.name) for one in fields(options) if one.name in named}
    own = {
        "engine": changed(engine), "api_keys": (*options.api_key, *environment),
        "served_model_names": options.served_model_name, "chat_template": _template(options.chat_template),
    }  # fmt: skip
    run(
        ServeOptions(**{**same, **own}),
        (lambda facts: None) if target is None else (lambda facts: write_json(facts, target)),
    )


def changed(flags: EngineFlags) -> dict[str, Any]:
    """The flags that are not at their defaults."""
    return {one.name: value for one in fields(flags) if (value := getattr(flags, one.name)) != one.default}


def _template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the chat template {path}: {error}") from None
