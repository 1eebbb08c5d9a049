"""Text to token ids and back, for the front: a tokenizer, and a process that renders chat templates."""

import asyncio
import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.base.errors import OctavoError, RequestError
from octavo.checkpoint import open_checkpoint, open_tokenizer
from octavo.checkpoint.tokenizer import Tokenizer

__all__ = ["Words", "open_words"]

_RENDER_SECONDS = 10.0
_INLINE_CHARACTERS = 4096


class _Renderer:
    """One process, one chat at a time; killed and started anew when a chat takes too long."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def render(self, job: Mapping[str, Any]) -> str:
        async with self._lock:
            try:
                answer = await asyncio.wait_for(self._ask(msgspec.msgpack.encode(job)), _RENDER_SECONDS)
            except TimeoutError:
                await self.close()
                raise RequestError(f"the chat template took more than {_RENDER_SECONDS:.0f} s") from None
            except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
                await self.close()
                raise RequestError("the chat template took more memory than it may") from None
            except BaseException:  # cancelled between question and answer
                await self.close()
                raise
        if "error" in answer:
            raise RequestError(answer["error"], hint=answer["hint"])
        return answer["text"]

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, body: bytes) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "octavo.serve.render_worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        read, write = self._process.stdout, self._process.stdin
        assert read is not None and write is not None, "the process was started without pipes"
        write.write(len(body).to_bytes(4, "little") + body)
        await write.drain()
        head = await read.readexactly(4)
        return msgspec.msgpack.decode(await read.readexactly(int.from_bytes(head, "little")))


class Words:
    """What the routes know of a tokenizer. Raises RequestError where the checkpoint has none."""

    def __init__(self, tokenizer: Tokenizer | None):
        self._tokenizer = tokenizer
        self._renderer = _Renderer()

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer: only token ids are served")
        return self._tokenizer

    @property
    def chat_template(self) -> str | None:
        return self._tokenizer.chat_template if self._tokenizer else None

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Long texts are cut up beside the event loop, which goes on meanwhile."""
        if len(text) < _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens)

    async def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The text of a chat."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            raise RequestError(
                "this model has no chat template", hint="start with --chat-template, or use /v1/completions"
            )
        given = {**tokenizer.special_tokens, **variables}
        return await self._renderer.render(
            {"template": tokenizer.chat_template, "messages": messages, "variables": given}
        )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens)

    @functools.lru_cache(maxsize=1 << 17)  # noqa: B019 (one Words lives as long as the process)
    def piece(self, token: int) -> str:
        """The text of one token, as log-probabilities name it; tokens that are no whole characters by their number."""
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        return f"token_id:{token}" if "\ufffd" in text else text

    async def close(self) -> None:
        await self._renderer.close()


def open_words(model: str, tokenizer: str | None, chat_template: str | None) -> Words:
    """The tokenizer of a checkpoint, read in this process; no weights are."""
    try:
        found = open_tokenizer(tokenizer) if tokenizer else open_checkpoint(model).tokenizer()
    except OctavoError:
        if tokenizer:
            raise
        return Words(None)
    return Words(found.with_chat_template(chat_template) if chat_template else found)
