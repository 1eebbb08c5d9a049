"""Faults below HTTP: clients that dawdle, vanish, flood or speak nonsense; files, logs, clocks that fail; signals."""

import asyncio
import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import fake_app
from real_server import ENGINE, Server, start
from starlette.testclient import TestClient

POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"
CLIENT_SECONDS = 1


@pytest.fixture(scope="module")
def strict(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience and a short queue."""
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})  # compiles what is not compiled yet
    running = start(
        tmp_path_factory.mktemp("strict") / "log", "--receive-timeout", "1", "--client-timeout", str(CLIENT_SECONDS),
        "--engine-timeout", "6", "--max-num-queued-reqs", "8", "--shutdown-timeout", "20",
    )  # fmt: skip
    assert running.post("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    yield running
    running.process.terminate()
    assert running.process.wait(15) == 0, running.log.read_text()


def connect(server: Server, receive_bytes: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(10)
    made.connect((host, int(port)))
    return made


def request(**body) -> bytes:
    data = json.dumps({"prompt": "Once upon a time", "ignore_eos": True, **body}).encode()
    return POST + b"Content-Length: %d\r\n\r\n" % len(data) + data


def read_all(connection: socket.socket, pause: float = 0.0, at_once: int = 65536) -> bytes:
    """One whole answer, or what came before the connection was closed."""
    got = b""
    try:
        while not is_whole(got) and (piece := connection.recv(at_once)):
            got += piece
            time.sleep(pause)
    except ConnectionResetError:
        pass
    return got


def is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return len(body) >= int(length[1]) if end and length else answer.endswith(b"\r\n0\r\n\r\n")


def files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def until_files(server: Server, most: int) -> None:
    end = time.monotonic() + 5
    while files(server) > most:
        assert time.monotonic() < end, f"{files(server)} files are open, {most} were"
        time.sleep(0.05)


def seconds_of(server: Server, times: int = 15) -> float:
    """Median time of an answer to a new client."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        assert server.get("/health")[0] == 200
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


class Stream(threading.Thread):
    """A well-behaved client: reads its stream as it comes, and notes when."""

    def __init__(self, server: Server, tokens: int, **more):
        super().__init__(daemon=True)
        self.connection, self.got, self.times = connect(server), b"", []
        self.connection.sendall(request(max_tokens=tokens, stream=True, **more))
        self.start()

    def run(self) -> None:
        while not is_whole(self.got) and (piece := self.connection.recv(65536)):
            self.got += piece
            self.times.append(time.perf_counter())

    def gap(self) -> float:
        """Median seconds between what came; waits for the end, and checks that it is whole."""
        self.join(30)
        assert b"[DONE]" in self.got, self.got[-300:]
        self.connection.close()
        return statistics.median(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@pytest.mark.slow
def test_two_hundred_slow_loris(strict: Server):
    open_before, alone = files(strict), seconds_of(strict)
    stream = Stream(strict, 60)
    halves = (b"GET /hea", GET + b"X-A: b", request(max_tokens=1)[:-10], b"")
    crowd = [connect(strict) for _ in range(240)]
    for number, one in enumerate(crowd):
        one.sendall(halves[number % len(halves)])
    beside = connect(strict)  # slow, but it goes on: 1500 bytes a second for more than a second
    data = b" " * 2000 + b'{"prompt": "a", "max_tokens": 1}'
    beside.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(data))
    assert seconds_of(strict) < 10 * alone + 0.05
    begin = time.monotonic()
    while data:
        beside.sendall(data[:150])
        data = data[150:]
        time.sleep(0.1)
        if time.monotonic() - begin < 0.5:
            for one in crowd[::4]:
                one.sendall(b"a")
    assert b" 200 OK" in read_all(beside)
    for one in crowd:
        one.settimeout(3)
        assert read_all(one).split(b" ")[1:2] in ([b"408"], [])
        one.close()
    assert stream.gap() > 0, "a long answer is not cut"
    beside.close()
    until_files(strict, open_before)
    assert strict.live()["running"] == 0


def test_half_closed_is_gone(strict: Server):
    """A client that shuts down its writing side is one that left: the two cannot be told apart before a write fails."""
    with connect(strict) as client:
        client.sendall(request(max_tokens=2000))
        strict.until(lambda live: live["running"] == 1)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert strict.until(lambda live: live["running"] == 0)["pages"]["held"] == 0


@pytest.mark.parametrize("behind", [b"", GET + b"\r\n", request(max_tokens=4)], ids=["alone", "get", "post"])
def test_a_reset_in_mid_stream_frees_the_pages(strict: Server, behind: bytes):
    client = connect(strict)
    client.sendall(request(max_tokens=2000, stream=True) + behind)
    assert b"data: " in client.recv(4096) + client.recv(4096)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    state = strict.until(lambda live: live["running"] + live["waiting"] == 0, 5)
    assert state["pages"]["held"] == 0 and state["sequences"] == []


@pytest.mark.slow
def test_who_never_reads_is_given_up_and_who_reads_slowly_is_not(strict: Server):
    open_before, alone = files(strict), Stream(strict, 15).gap()
    memory = resident(strict)
    never = connect(strict, 2048)
    never.sendall(request(max_tokens=2000, stream=True, logprobs=20))
    plain = connect(strict, 2048)  # an answer that is not a stream, and longer than the buffers
    plain.sendall(request(prompt=["Once upon a time"] * 2, max_tokens=20, logprobs=20))
    slow = connect(strict, 32768)
    slow.sendall(request(max_tokens=36, stream=True, logprobs=20))
    assert Stream(strict, 15).gap() < 12 * alone
    begin = time.monotonic()
    assert b"[DONE]" in read_all(slow, 0.05, 1024) and time.monotonic() - begin > CLIENT_SECONDS
    # whoever never reads is noticed once some 60 events fill what lies between: on a busy machine that takes a while
    state = strict.until(lambda live: live["running"] == 0, CLIENT_SECONDS + 4 + 60 * alone)
    assert state["pages"]["held"] == 0
    slow.close()
    until_files(strict, open_before)
    assert resident(strict) - memory < 30 << 20
    never.close()
    plain.close()


def resident(server: Server) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


BODY = b'{"prompt":"a","max_tokens":1}'
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = POST + b"Content-Length: %d\r\n"
NONSENSE = {
    "no request line": b"FOO BAR BAZ\r\n\r\n", "lower case": b"get / http/1.1\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n", "two hosts": GET + b"Host: b\r\n\r\n",
    "a header of a megabyte": GET + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "10,000 headers": GET + b"".join(b"X%d: a\r\n" % number for number in range(10_000)) + b"\r\n",
    "300 headers": GET + b"X: a\r\n" * 300 + b"\r\n",
    "chunk of no size": CHUNKED + b"ZZ\r\n", "negative chunk": CHUNKED + b"-1\r\n", "huge chunk": CHUNKED + b"F" * 20,
    "chunk longer than it says": CHUNKED + b"2\r\n" + BODY, "length too short": LENGTH % 5 + b"\r\n" + BODY,
    "length too long": LENGTH % 500 + b"\r\n" + BODY, "two lengths": LENGTH % 29 + b"Content-Length: 30\r\n\r\n" + BODY,
    "the same length twice": LENGTH % 29 + b"Content-Length: 29\r\n\r\n" + BODY,
    "negative length": LENGTH % -1 + b"\r\n" + BODY, "endless length": LENGTH % 10**30 + b"\r\n" + BODY,
    "length in words": POST + b"Content-Length: many\r\n\r\n" + BODY,
    "length and chunks": LENGTH % 29 + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "HTTP/0.9": b"GET /health\r\n\r\n", "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"GET /health HTTP/3.0\r\nHost: a\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2, "binary": bytes(range(255, -1, -1)) * 16,
    "NUL in the path": b"GET /he\0alth HTTP/1.1\r\nHost: a\r\n\r\n", "NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "NUL, escaped": b"GET /v1/models/%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a URL of a megabyte": b"GET /" + b"a" * (1 << 20),
    "bytes in the path": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header in two lines": GET + b"X: a\r\n b\r\n\r\n", "no colon": GET + b"X\r\n\r\n",
    "bare CR": GET + b"X: a\rY: b\r\n\r\n",
    "bare LF": b"GET /health HTTP/1.1\nHost: a\n\n", "space before the colon": GET + b"X : a\r\n\r\n",
}  # fmt: skip


def test_nonsense_is_a_4xx_or_the_end(strict: Server):
    clients = {}
    for name, data in NONSENSE.items():
        clients[name] = connect(strict)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # refused before all of it was sent
            clients[name].sendall(data)
    for name, client in clients.items():
        got = read_all(client)
        assert got.startswith(b"HTTP/1.1 4") or got == b"", (name, got[:200])
        client.close()
    assert b"Traceback" not in strict.log.read_bytes()
    assert strict.post("/v1/completions", json.loads(BODY))[0] == 200


@pytest.mark.parametrize("offer", [b"websocket", b"h2c"])
def test_an_upgrade_is_ignored_and_loses_no_body(strict: Server, offer: bytes):
    with connect(strict) as client:
        for _ in range(2):
            head = LENGTH % len(BODY) + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + offer
            client.sendall(head + b"\r\nHTTP2-Settings: AAAA\r\n\r\n" + BODY)
            assert read_all(client).startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_are_answered_in_order(strict: Server):
    with connect(strict) as client:
        client.sendall(request(max_tokens=2) * 2 + GET + b"Connection: close\r\n\r\n")
        got = b""
        while piece := client.recv(65536):
            got += piece
    answers = got.split(b"HTTP/1.1 200 OK")[1:]
    assert [b"text_completion" in one for one in answers] == [True, True, False]


def test_a_path_does_not_forge_lines_of_the_log(strict: Server):
    strict.get("/v1/models/a%0aforged%20line")
    end = time.monotonic() + 2
    while b"a\\nforged line 404" not in strict.log.read_bytes():
        assert time.monotonic() < end, strict.log.read_text()[-500:]
    assert b"\nforged" not in strict.log.read_bytes()


@pytest.mark.slow
def test_a_flood(strict: Server):
    open_before, stream = files(strict), Stream(strict, 60)

    async def one(gate: asyncio.Event) -> tuple[bytes, float]:
        host, port = strict.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await gate.wait()
            begin = time.perf_counter()
            writer.write(request(max_tokens=2000))
            head = await reader.readuntil(b"\r\n\r\n")
            return head, time.perf_counter() - begin
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def flood() -> list[tuple[bytes, float]]:
        gate = asyncio.Event()
        asked = [asyncio.create_task(one(gate)) for _ in range(500)]
        await asyncio.sleep(0.2)
        gate.set()
        end = time.monotonic() + 5
        while sum(task.done() for task in asked) < 500 - 16 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        done, waiting = await asyncio.wait(asked, timeout=0.2)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [task.result() for task in done]

    answers = asyncio.run(flood())
    refused = [taken for head, taken in answers if head.startswith(b"HTTP/1.1 429")]
    assert len(refused) == len(answers) >= 500 - 16 and all(b"retry-after: " in head for head, _ in answers)
    print(f"429: {len(refused)}, median {1e3 * statistics.median(refused):.0f} ms, last {1e3 * max(refused):.0f} ms")
    stream.gap()
    strict.until(lambda live: live["running"] + live["waiting"] == 0)
    until_files(strict, open_before)
    assert strict.post("/v1/completions", json.loads(BODY))[0] == 200


def test_files_run_out(strict: Server):
    pid, open_before = strict.process.pid, files(strict)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    crowd: list[socket.socket] = []
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_before + 8, before[1]))
        crowd = [connect(strict) for _ in range(20)]
        time.sleep(0.3)
        for one in crowd:
            one.close()
        until_served(strict)
        until_files(strict, open_before)
        assert strict.post("/v1/completions", json.loads(BODY))[0] == 200
        assert strict.log.read_text().count("cannot be accepted") < 3
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_too_many_connections_are_told(strict: Server):
    pid, open_before = strict.process.pid, files(strict)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, before[1]))
        crowd = [connect(strict) for _ in range(70)]
        told = select.select(crowd, [], [], 0.9)[0]
        assert told and read_all(told[0]).startswith(b"HTTP/1.1 503")
        for one in crowd:
            one.close()
        until_files(strict, open_before)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def child(server: Server) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = entry.joinpath("stat").read_text().rpartition(")")[2].split()[1] == str(server.process.pid)
            if ours and b"engine_process" in entry.joinpath("cmdline").read_bytes():
                return int(entry.name)
        except OSError:
            pass
    raise AssertionError("there is no engine")


def gone(pid: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_an_engine_that_hangs_shows_in_health_and_may_come_back(strict: Server):
    engine = child(strict)
    os.kill(engine, signal.SIGSTOP)
    try:
        end = time.monotonic() + 5
        while strict.get("/health")[0] == 200:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(engine, signal.SIGCONT)
    strict.until(lambda live: live["engine_silent_seconds"] < 1)
    assert strict.get("/health")[0] == 200 and child(strict) == engine


@pytest.mark.slow
def test_an_engine_that_hangs_for_too_long_is_replaced(strict: Server):
    engine, found = child(strict), []
    body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True}
    thread = threading.Thread(target=lambda: found.append(strict.post("/v1/completions", body)))
    thread.start()
    strict.until(lambda live: live["running"] == 1)
    os.kill(engine, signal.SIGSTOP)
    thread.join(20)
    assert found[0][0] == 503 and gone(engine)
    strict.until(lambda live: live["state"] == "ready", 30)
    assert child(strict) != engine and strict.post("/v1/completions", json.loads(BODY))[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("full", ["stderr", "stdout"])
def test_logs_that_cannot_be_written_and_two_signals(full: str):
    """One on a full disk, the other a pipe that nobody reads: it serves; the second signal ends what is still open."""
    read, write = os.pipe()
    os.close(read)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    with open("/dev/full", "wb") as disk:
        outputs = {"stdout": disk if full == "stdout" else write, "stderr": disk if full == "stderr" else write}
        command = [sys.executable, "-m", "octavo", "serve", "smollm2", *ENGINE, "--port", port]
        server = Server(subprocess.Popen(command, **outputs), f"http://127.0.0.1:{port}", Path())  # type: ignore[arg-type]
    os.close(write)
    until_served(server)
    assert server.get("/nowhere")[0] == 404
    engine, stuck, half, stream = child(server), connect(server, 2048), connect(server), connect(server)
    half.sendall(request()[:-5])
    for one in (stuck, stream):
        one.sendall(request(max_tokens=2000, stream=True))
    server.until(lambda live: live["running"] == 2)
    begin = time.monotonic()
    server.process.terminate()
    time.sleep(0.3)
    assert server.process.poll() is None, "open requests have time"
    server.process.terminate()
    assert b"shutting down" in read_all(stream)
    assert server.process.wait(10) == 0 and time.monotonic() - begin < 6 and gone(engine)
    for one in (stuck, half, stream):
        one.close()


def until_served(server: Server) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if server.get("/health")[0] == 200:
                return
        except OSError:
            pass
        assert server.process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_clock_that_jumps(monkeypatch: pytest.MonkeyPatch):
    app, desk, link = fake_app()
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    answer = link._answer

    def late(*given) -> None:
        shift[0] -= 3600
        answer(*given)

    monkeypatch.setattr(link, "_answer", late)
    with TestClient(app) as client:
        for _ in range(3):
            begin = time.monotonic()
            assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200
            assert time.monotonic() - begin < 5
        live = client.get("/live").json()
        text = client.get("/metrics").text
    assert shift[0] == -3 * 3600
    assert 0 <= live["uptime_seconds"] < 60 and 0 <= live["time_to_first_token_ms"] < 5000
    sums = {line.split("{")[0]: float(line.split()[-1]) for line in text.splitlines() if "_seconds_sum" in line}
    assert sums and all(0 <= value < 10 for value in sums.values()), sums
    assert link.silent_seconds < 10 and desk.metrics.snapshot()["tokens_per_second"] is not None


def launch(log: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "octavo", "serve", "smollm2", "--port", "0", *ENGINE, *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    end = time.monotonic() + 30
    while b"listening" not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    return process


def test_signals_while_the_model_loads(tmp_path: Path):
    """One gets three signals, one is killed."""
    polite, killed = (launch(tmp_path / name) for name in ("polite", "killed"))
    time.sleep(0.2)
    engine = child(Server(killed, "", tmp_path))
    begin = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        polite.send_signal(number)
    killed.kill()
    assert gone(engine), "the engine outlives the front"
    assert (polite.wait(10), killed.wait(10)) == (0, -signal.SIGKILL)
    assert time.monotonic() - begin < 6 and "Traceback" not in tmp_path.joinpath("polite").read_text()


def test_a_signal_to_the_whole_group_is_the_fronts(strict: Server):
    """A supervisor may signal every process: what the engine has under way ends as the front says."""
    engine = child(strict)
    stream = Stream(strict, 40)
    strict.until(lambda live: live["running"] == 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(engine, number)
    assert stream.gap() > 0
    assert child(strict) == engine and strict.get("/health")[0] == 200


@pytest.mark.slow
def test_a_killed_front_takes_a_stopped_engine_along(tmp_path: Path):
    running = start(tmp_path / "log")
    engine = child(running)
    os.kill(engine, signal.SIGSTOP)
    running.process.kill()
    running.process.wait(5)
    try:
        assert gone(engine)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine, signal.SIGCONT)


@pytest.mark.slow
def test_a_signal_while_the_engine_restarts(tmp_path: Path):
    running = start(tmp_path / "log")
    os.kill(child(running), signal.SIGKILL)
    running.until(lambda live: live["state"] == "restarting")
    running.process.terminate()
    assert running.process.wait(10) == 0, running.log.read_text()
