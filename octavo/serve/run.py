"""Run the server until it is told to end.

The first SIGTERM or SIGINT closes the door: no new connection, open requests get `shutdown_timeout` seconds, then an
error. The second ends at once.
"""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from octavo.base.errors import OctavoError, UsageError
from octavo.serve.app import make_app, make_desk
from octavo.serve.connection import Connection, quiet_accept, raise_file_limit, watch
from octavo.serve.desk import Desk
from octavo.serve.facts import banner
from octavo.serve.logs import configure
from octavo.serve.options import ServeOptions

__all__ = ["serve"]

log = logging.getLogger("octavo")

_GRACE_SECONDS, _LAST_WORDS_SECONDS = 3, 0.3
_ACCEPTED_AT_ONCE, _WAITING_TO_BE_ACCEPTED = 32, 2048


def serve(options: ServeOptions, on_ready: Callable[[dict[str, Any]], None] = lambda facts: None) -> None:
    """Blocks. `on_ready`: called with the facts of model and cache when requests are taken for the first time. Raises
    OctavoError for what cannot be started, UsageError for a port that is taken."""
    configure(options.log_format)
    raise_file_limit()
    desk = make_desk(options)
    door = _bind(options.host, options.port)
    config = uvicorn.Config(
        make_app(desk), log_config=None, access_log=False, http=Connection, lifespan="on", ws="none",
        timeout_graceful_shutdown=int(options.shutdown_timeout) + _GRACE_SECONDS, server_header=False,
        backlog=_ACCEPTED_AT_ONCE,
    )  # fmt: skip
    server = _Server(config, desk)
    host, port = door.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    asyncio.run(_serve(server, door, url, on_ready))
    if desk.link.failure is not None and desk.link.facts is None:
        raise desk.link.failure


async def _serve(server: "_Server", door: socket.socket, url: str, on_ready: Callable[[dict[str, Any]], None]) -> None:
    log.info("listening on %s; the engine is loading", url)
    asyncio.get_running_loop().set_exception_handler(quiet_accept())
    beside = [
        asyncio.create_task(_tell_when_ready(server, url, on_ready)),
        asyncio.create_task(watch(server.server_state.connections, server.desk.options)),
    ]
    await server.serve(sockets=[door])
    for task in beside:
        task.cancel()


async def _tell_when_ready(server: "_Server", url: str, on_ready: Callable[[dict[str, Any]], None]) -> None:
    desk = server.desk
    try:
        await desk.link.settled()
    except OctavoError:
        server.should_exit = True
        return
    assert desk.link.facts is not None, "settled without facts"
    log.info("%s", banner(desk.link.facts, url))
    on_ready({**desk.link.facts, "url": url})


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, desk: Desk):
        super().__init__(config)
        self.desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.desk.draining:
            self.desk.link.fail_all("the server is shutting down")
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._hang_up)
        else:
            self.desk.draining = True
            count = self.desk.link.open_requests
            log.info("%s: %d open requests have %.0f s to end", signal.Signals(sig).name, count,
                     self.desk.options.shutdown_timeout)  # fmt: skip
            loop = asyncio.get_running_loop()
            loop.call_later(self.desk.options.shutdown_timeout, self.desk.link.fail_all, "the server is shutting down")
        super().handle_exit(sig, frame)
        self.force_exit = False  # it would leave the engine's folder
        self._captured_signals.clear()  # it would raise them again at the end; a drained server ends well

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for door in sockets or ():  # uvicorn's backlog is how many are accepted at once, too
            door.listen(_WAITING_TO_BE_ACCEPTED)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = "choose another --port" if taken else "choose another --host: an address of this machine, or 0.0.0.0"
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from None
    door.listen(_WAITING_TO_BE_ACCEPTED)
    door.set_inheritable(False)
    return door
