"""Renders chat templates, and compiles grammars, in a process of its own: `python -m octavo.serve.render_worker`.

A template is code from a checkpoint. The sandbox keeps it from touching anything, but not from using time and memory
without end; here both are limited, and the process can be killed. So it is with the grammars of clients, which are
compiled here once before the engine does. One byte says that it is ready; then frames as in `wire.py`.
"""

import contextlib
import sys
from typing import Any

import msgspec

from octavo.base.errors import OctavoError
from octavo.checkpoint.chat_template import render_chat
from octavo.engine.grammar import rehearse
from octavo.engine.grammar_spec import GrammarSpec
from octavo.serve.orphan import end_with_parent

__all__ = ["main", "render"]

_MEMORY_BYTES = 1 << 30
_MOST_CHARACTERS = 16 << 20


def render(job: dict[str, Any]) -> dict[str, Any]:
    """`{"text"}`, or `{"error", "hint"}`."""
    try:
        if "grammar" in job:
            rehearse(GrammarSpec(**job["grammar"]))
            return {"text": ""}
        text = render_chat(job["template"], job["messages"], job["variables"])
    except OctavoError as error:
        return {"error": error.message[:2000], "hint": error.hint}
    except (MemoryError, RecursionError) as error:
        return {"error": f"the chat template needs too much: {type(error).__name__}", "hint": None}
    if len(text) > _MOST_CHARACTERS:
        return {"error": f"the rendered chat has {len(text)} characters (at most {_MOST_CHARACTERS})", "hint": None}
    try:
        text.encode()
    except UnicodeEncodeError:
        return {"error": "the text holds a lone surrogate, which is not Unicode text", "hint": None}
    return {"text": text}


def main() -> None:
    end_with_parent()
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    read, write = sys.stdin.buffer, sys.stdout.buffer
    write.write(b"+")
    write.flush()
    while len(head := read.read(4)) == 4:
        job = msgspec.msgpack.decode(read.read(int.from_bytes(head, "little")))
        body = msgspec.msgpack.encode(render(job))
        write.write(len(body).to_bytes(4, "little") + body)
        write.flush()


if __name__ == "__main__":
    main()
