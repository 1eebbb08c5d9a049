"""One server for all tests of a process."""

from collections.abc import Iterator

import pytest
from real_server import Server, start

from octavo.checkpoint import open_checkpoint


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    open_checkpoint("smollm2")  # `make test` installs it
    running = start(tmp_path_factory.mktemp("server") / "log")
    yield running
    running.process.terminate()
    assert running.process.wait(15) == 0, running.log.read_text()
