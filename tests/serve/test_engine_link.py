"""The supervisor of the engine's process: whatever ends a life of it, another one follows."""

import asyncio
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from fake_engine import FACTS

from octavo.base.errors import OctavoError
from octavo.serve.engine_link import EngineLink
from octavo.serve.inbox import EngineGone, Inbox

# says that it is ready, then ends when its socket does
ENGINE = """
import socket, sys, msgspec
from octavo.serve.wire import Ready, frame
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.sendall(frame(Ready(msgspec.json.decode(sys.argv[2]))) + bytes.fromhex(sys.argv[3]))
while link.recv(4096):
    pass
"""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Processes that only pretend take the engine's place. What is put into the list they send after their Ready, each
    its own; an OSError's text instead of hex digits means that no process can be made."""
    import msgspec

    real, facts, script = asyncio.create_subprocess_exec, msgspec.json.encode(FACTS).decode(), []

    async def create(*command: str, **more):
        after = script.pop(0) if script else ""
        if "cannot" in after:
            raise BlockingIOError(11, after)
        return await real(sys.executable, "-c", ENGINE, command[3], facts, after, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create)
    monkeypatch.setattr("octavo.serve.engine_link._LONGEST_PAUSE_SECONDS", 0.1)
    return script


async def until(link: EngineLink, state: str, restarts: int) -> None:
    async with asyncio.timeout(15):
        while (link.state, link.restarts) != (state, restarts):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("tidied", [False, True])
def test_a_killed_engine_is_replaced_though_its_folder_was_tidied_away(engines: list[str], tidied: bool, monkeypatch,
                                                                      tmp_path: Path):  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def run() -> None:
        link = EngineLink({})
        link.start()
        await until(link, "ready", 0)
        [folder] = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        if tidied:
            shutil.rmtree(folder)
        assert link.pid is not None
        link._child.kill()
        await until(link, "ready", 1)
        await link.close()

    asyncio.run(run())
    assert not list(tmp_path.iterdir())


def test_no_process_and_no_frame_are_deaths_like_others(engines: list[str]):
    async def run() -> None:
        link = EngineLink({})
        engines.extend(["", "cannot be made: no more processes", "00000000"])  # the last is a frame of no bytes
        link.start()
        await until(link, "ready", 0)
        inbox = Inbox()
        link.submit(inbox, 0, [1], {}, "")
        assert link.pid is not None
        link._child.kill()
        with pytest.raises(EngineGone):
            async with asyncio.timeout(2):
                await inbox.take()
        with pytest.raises(EngineGone):
            link.submit(inbox, 0, [1], {}, "")
        await until(link, "ready", 3)
        await link.close()

    asyncio.run(run())


def test_a_first_engine_that_cannot_be_made_is_said(engines: list[str]):
    async def run() -> None:
        engines.append("cannot be made: no more processes")
        link = EngineLink({})
        link.start()
        with pytest.raises(OctavoError, match="no more processes"):
            await link.settled()
        await link.close()

    asyncio.run(run())
