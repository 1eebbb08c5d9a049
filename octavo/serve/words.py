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

__all__ = ["TooManyTokens", "Words", "open_words"]

_RENDER_SECONDS, _GRAMMAR_SECONDS = 10.0, 2.0
_INLINE_CHARACTERS = 4096
_CHARACTERS_A_TOKEN = 4  # a text of more for each of the tokens that it may have is looked at in steps


class TooManyTokens(RequestError):
    """A text does not fit into the model, however it would go on."""


class _Worker:
    """One process, one job at a time; killed and started anew when a job takes too long."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def do(self, what: str, job: Mapping[str, Any], seconds: float) -> str:
        """The text that a job gives. Raises RequestError for too much time or memory, or an integer of over 64 bits."""
        try:
            asked = msgspec.msgpack.encode(job)
        except OverflowError:
            raise RequestError(f"the {what} cannot have an integer of more than 64 bits") from None
        async with self._lock:
            try:
                await self._start()
                answer = await asyncio.wait_for(self._ask(asked), seconds)
            except TimeoutError:
                await self.close()
                raise RequestError(f"the {what} took more than {seconds:.0f} s") from None
            except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
                await self.close()
                raise RequestError(f"the {what} took more memory than it may") from None
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

    async def _start(self) -> None:
        if self._process is not None and self._process.returncode is None:
            return
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "octavo.serve.render_worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None, "the process was started without pipes"
        await self._process.stdout.readexactly(1)  # its modules are loaded: from here on time counts

    async def _ask(self, body: bytes) -> dict[str, Any]:
        assert self._process is not None, "the worker is not started"
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
        self._worker = _Worker()

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer: only token ids are served")
        return self._tokenizer

    @property
    def chat_template(self) -> str | None:
        return self._tokenizer.chat_template if self._tokenizer else None

    async def encode(self, text: str, most: int, add_special_tokens: bool = True) -> list[int]:
        """The ids of one text, as `encode_all`."""
        return (await self.encode_all([text], most, add_special_tokens))[0]

    async def encode_all(self, texts: Sequence[str], most: int, add_special_tokens: bool = True) -> list[list[int]]:
        """The ids of each text. Much text is cut up beside the event loop, which goes on meanwhile. Raises
        TooManyTokens for a text of more than about `most` tokens, long before all of it is cut up."""
        tokenizer = self.tokenizer

        def encode() -> list[list[int]]:
            return [_encode(tokenizer, text, most, add_special_tokens) for text in texts]

        inline = sum(map(len, texts)) < _INLINE_CHARACTERS
        return encode() if inline else await asyncio.to_thread(encode)

    async def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The text of a chat."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            raise RequestError(
                "this model has no chat template", hint="start with --chat-template, or use /v1/completions"
            )
        given = {**tokenizer.special_tokens, **variables}
        job = {"template": tokenizer.chat_template, "messages": messages, "variables": given}
        return await self._worker.do("chat template", job, _RENDER_SECONDS)

    async def rehearse(self, grammar: Mapping[str, str]) -> None:
        """Compile a grammar where nothing is lost if that ends badly. Raises RequestError."""
        await self._worker.do("grammar", {"grammar": grammar}, _GRAMMAR_SECONDS)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens)

    @functools.lru_cache(maxsize=1 << 17)  # noqa: B019 (one Words lives as long as the process)
    def piece(self, token: int) -> str:
        """The text of one token, as log-probabilities name it; tokens that are no whole characters by their number."""
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        return f"token_id:{token}" if "\ufffd" in text else text

    def about(self) -> dict[str, Any]:
        """The special tokens by their names, the chat template, how many ids there are."""
        tokenizer = self.tokenizer
        known = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
        return {
            **known, **tokenizer.special_tokens, "chat_template": tokenizer.chat_template,
            "vocab_size": tokenizer.vocab_size,
        }  # fmt: skip

    async def close(self) -> None:
        await self._worker.close()


def _encode(tokenizer: Tokenizer, text: str, most: int, add_special_tokens: bool) -> list[int]:
    characters = _CHARACTERS_A_TOKEN * most
    while characters < len(text):
        if len(tokenizer.encode(text[:characters], add_special_tokens)) > most + most // 8:
            raise TooManyTokens(f"the text of {len(text)} characters has more than {most} tokens")
        characters *= 2
    return tokenizer.encode(text, add_special_tokens)


def open_words(model: str, tokenizer: str | None, chat_template: str | None) -> Words:
    """The tokenizer of a checkpoint, read in this process; no weights are."""
    try:
        found = open_tokenizer(tokenizer) if tokenizer else open_checkpoint(model).tokenizer()
    except OctavoError:
        if tokenizer:
            raise
        return Words(None)
    return Words(found.with_chat_template(chat_template) if chat_template else found)
