"""What the front process and the engine process say to each other: msgpack frames over a private local socket.

A frame is its length (4 bytes, little endian) and a message. Messages are the structs below and nothing else: what
does not decode as one of them ends the connection. No pickle.

    front -> engine   Start, then Add, Abort, Look in any order
    engine -> front   Log, then Ready or Failed; then Refused, Step, Picture, Log
"""

from typing import Any

import msgspec

from octavo.base.errors import OctavoError

__all__ = [
    "MAX_FRAME_BYTES", "Abort", "Add", "Event", "Failed", "FrameError", "FromEngine", "FromFront", "Log", "Logprob",
    "Look", "Picture", "Ready", "Refused", "Start", "Stats", "Step", "decoder_of", "frame", "frame_length",
]  # fmt: skip

MAX_FRAME_BYTES = 256 << 20
_LENGTH_BYTES = 4


class FrameError(OctavoError):
    """The other side sent what is no frame."""


class Start(msgspec.Struct, tag="start", frozen=True):
    """The first message. `options`: the fields of `EngineOptions` that are not at their defaults."""

    options: dict[str, Any]


class Add(msgspec.Struct, tag="add", frozen=True, omit_defaults=True):
    """A request. `params`: the fields of `SamplingParams` that are not at their defaults."""

    id: int
    tokens: list[int]
    params: dict[str, Any]
    salt: str = ""


class Abort(msgspec.Struct, tag="abort", frozen=True):
    id: int


class Look(msgspec.Struct, tag="look", frozen=True):
    """Ask for a Picture of at most `cells` cells."""

    cells: int = 2048


class Log(msgspec.Struct, tag="log", frozen=True):
    level: int
    """as in logging"""
    text: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """`facts`: what `/v1/models` tells about model and cache (`serve/facts.py`)."""

    facts: dict[str, Any]


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The engine could not start: the message and the hint of an OctavoError."""

    message: str
    hint: str | None


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """A request that the engine does not take."""

    id: int
    message: str
    hint: str | None


class Logprob(msgspec.Struct, array_like=True, frozen=True):
    token: int
    logprob: float
    top: list[tuple[int, float]]


class Event(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """What one step gave one request. Times are seconds; they come with the first event of a request."""

    id: int
    token: int | None
    text: str
    finish: str | None = None
    logprob: Logprob | None = None
    prompt_logprobs: list[Logprob] | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None


class Stats(msgspec.Struct, array_like=True, frozen=True):
    """The engine's counters after a step. Totals count from the start of the engine process."""

    running: int
    waiting: int
    pages_total: int
    pages_held: int
    steps: int
    preemptions: int
    prompt_tokens: int
    """run through the model, prefix hits left out"""
    generated_tokens: int
    prefix_queries: int
    """prompt tokens that were looked up in the prefix index"""
    prefix_hits: int
    """of them, found there"""
    bytes_read: int
    """bytes of encoded K and V that attention read, by the lengths of the sequences"""
    clipped: int
    """numbers that a static scale clipped; 0 without static scales"""


class Step(msgspec.Struct, tag="step", frozen=True):
    events: list[Event]
    stats: Stats


class Sequence(msgspec.Struct, frozen=True):
    id: int
    status: str
    prompt_tokens: int
    output_tokens: int
    pages: int


class Picture(msgspec.Struct, tag="picture", frozen=True):
    """The pages of the cache. A cell is `pages_per_cell` pages; its byte is the strongest state among them:
    0 free, 1 cached (held by nobody, known to the prefix index), 2 held, 3 shared by several sequences."""

    pages_per_cell: int
    cells: bytes
    free: int
    cached: int
    held: int
    shared: int
    sequences: list[Sequence]
    """the first 64 that run"""


FromFront = Start | Add | Abort | Look
FromEngine = Log | Ready | Failed | Refused | Step | Picture

_encoder = msgspec.msgpack.Encoder()


def frame(message: FromFront | FromEngine) -> bytes:
    """The bytes of a frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


def frame_length(head: bytes) -> int:
    """The length that a frame's first four bytes announce. Raises FrameError beyond `MAX_FRAME_BYTES`."""
    count = int.from_bytes(head, "little")
    if not 0 < count <= MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {count} bytes (1 to {MAX_FRAME_BYTES})")
    return count


def decoder_of(messages: Any) -> msgspec.msgpack.Decoder:
    """A decoder of one direction: `FromFront` or `FromEngine`."""
    return msgspec.msgpack.Decoder(messages)
