"""One life of the engine's process: the socket it calls, its start, its connection, its end."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

__all__ = ["EngineChild", "Streams"]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_PATIENCE_SECONDS = 3.0


class EngineChild:
    """The process of now, or the last one."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """None before there was a process, and while it runs."""
        return self._process.returncode if self._process else None

    def kill(self) -> None:
        """End it without ceremony, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def end(self) -> None:
        """Wait until the process ends, as it does when its connection closes; kill it if it does not."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[Streams | None]:
        """Start a process; its connection, or None if it ends before it has called. On leaving it has ended. Its socket
        has a folder of its own: one that was there at the start may have been tidied away since."""
        self._process = None
        with tempfile.TemporaryDirectory(prefix="octavo-", ignore_cleanup_errors=True) as folder:  # mode 0700
            async with self._calling(Path(folder) / "engine.sock") as streams:
                yield streams

    @contextlib.asynccontextmanager
    async def _calling(self, path: Path) -> AsyncIterator[Streams | None]:
        connected: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()

        def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()  # a second one is nobody we know
            else:
                connected.set_result((reader, writer))

        server = await asyncio.start_unix_server(connect, path)
        ended: asyncio.Task[int] | None = None
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "octavo.serve.engine_process", str(path), stdin=asyncio.subprocess.DEVNULL
            )
            ended = asyncio.create_task(self._process.wait())
            await asyncio.wait({connected, ended}, return_when=asyncio.FIRST_COMPLETED)
            yield connected.result() if connected.done() else None
        finally:
            if connected.done():
                connected.result()[1].close()
            server.close()
            if ended is not None:
                ended.cancel()
            await self.end()
