"""The verb `top`: a server watched from a terminal, through `GET /live`."""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

from cyclopts import Parameter

from octavo.base.errors import BadValue, RequestError, UsageError
from octavo.cli.output import JsonTarget, check_json_target, emit
from octavo.serve.client import Client, Unreachable, error_text

__all__ = ["TopFlags", "top"]

_REMEMBERED = 40
"""polls in the sparkline"""


@Parameter(name="*")
@dataclass(frozen=True)
class TopFlags:
    url: str = "http://localhost:8000"
    """The server: http://HOST:PORT"""
    _: KW_ONLY
    interval: float = 0.5
    """Seconds between two looks."""
    once: bool = False
    """One frame, and no more; as when the output is no terminal."""
    api_key: str | None = None
    """The server's key; if not given, the environment variable OPENAI_API_KEY."""
    json: JsonTarget = None


_DEFAULTS = TopFlags()


def top(flags: TopFlags = _DEFAULTS) -> None:
    """What a server does right now: requests, tokens a second, the pages of its cache, its sequences. q or Ctrl-C
    ends. With --json one look is written, as the server gave it."""
    from octavo.cli.top_view import frame
    from octavo.evals.server import urls_of

    check_json_target(flags.json)
    if not 0.05 <= flags.interval <= 3600:
        raise BadValue(f"interval: {flags.interval} s (0.05 to 3600)")
    urls = urls_of(flags.url)
    if len(urls) > 1:
        raise BadValue(f"one server to watch, not {len(urls)}: {flags.url}")
    client = Client(urls[0], flags.api_key or os.environ.get("OPENAI_API_KEY") or None, timeout_seconds=5.0)
    if flags.once or flags.json is not None or not sys.stdout.isatty():
        live = asyncio.run(_once(client))
        emit(live, frame(live, urls[0]), flags.json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(client, flags.interval))


async def _look(client: Client) -> dict[str, Any]:
    """What the server says now. Raises Unreachable for what may pass, RequestError for what will not."""
    reply = await client.get("/live")
    if reply.status in (401, 403):
        raise RequestError(f"{client.url}: {error_text(reply)}", hint="give --api-key, or set OPENAI_API_KEY")
    if reply.status in (404, 405):
        raise RequestError(
            f"{client.url} has no /live: {error_text(reply)}", hint="octavo top watches servers of octavo serve"
        )
    found = reply.json() if reply.status == 200 else None
    if not isinstance(found, dict):
        raise Unreachable(error_text(reply))
    return found


async def _once(client: Client) -> dict[str, Any]:
    try:
        return await _look(client)
    except Unreachable as error:
        raise UsageError(f"{client.url}: {error}") from error
    finally:
        await client.close()


async def _watch(client: Client, interval_seconds: float) -> None:
    """Look and draw until the user has seen enough. A server that goes away is waited for."""
    from rich.console import Console
    from rich.live import Live

    from octavo.cli.top_view import frame

    history: deque[float] = deque(maxlen=_REMEMBERED)
    live: dict[str, Any] = {}
    lost: str | None = None
    with _keys() as enough, Live(console=Console(highlight=False), screen=True, auto_refresh=False) as shown:
        try:
            while not enough.is_set():
                try:
                    live, lost = await _look(client), None
                    history.append(live.get("tokens_per_second") or 0.0)
                except Unreachable as error:
                    lost = str(error)
                shown.update(frame(live, client.url, list(history), lost), refresh=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(enough.wait(), interval_seconds)
        finally:
            await client.close()


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """An event that is set when q is pressed. Where keys cannot be had one by one, only Ctrl-C ends."""
    enough = asyncio.Event()
    try:
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, termios.error):  # not a terminal, or not a system that has them
        yield enough
        return

    def pressed() -> None:
        keys = os.read(terminal, 64)
        if not keys or b"q" in keys.lower():
            enough.set()

    tty.setcbreak(terminal)
    asyncio.get_running_loop().add_reader(terminal, pressed)
    try:
        yield enough
    finally:
        asyncio.get_running_loop().remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
