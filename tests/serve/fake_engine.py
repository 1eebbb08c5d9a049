"""The front with an engine that only pretends: it checks requests as the real one does and answers three tokens."""

import asyncio
from typing import Any

from octavo.engine.grammar import rehearse
from octavo.engine.limits import EngineLimits
from octavo.engine.sampling import SamplingParams
from octavo.serve.app import make_app, make_desk
from octavo.serve.desk import Desk
from octavo.serve.engine_link import EngineLink
from octavo.serve.inbox import EngineGone, Inbox
from octavo.serve.options import ServeOptions
from octavo.serve.traces import Traces
from octavo.serve.wire import Add, Event, Logprob, Picture, frame

__all__ = ["FakeLink", "fake_app"]

LIMITS = EngineLimits(49152, 512, 8, 1024, 64, 16)
FACTS: dict[str, Any] = {
    "model": {"name": "fake", "device": "cpu", "dtype": "bfloat16", "max_model_len": 512, "kernels": "cpu"},
    "kv_cache": {"dtype": "int8", "plan": "K int8, V int8", "bytes_per_token": 1.0, "bytes_per_token_bf16": 2.0,
                 "capacity_tokens": 1024, "pages": 16, "page_tokens": 64, "allocated_bytes": 1024,
                 "self_test": {"status": "off", "kl_mean": None}},
    "limits": {"vocab_size": 49152, "max_num_seqs": 8, "max_num_batched_tokens": 1024, "capacity_tokens": 1024},
}  # fmt: skip


class FakeLink(EngineLink):
    """What reached it that the real engine would have refused is in `refused`: the front should have."""

    def __init__(self, holds: bool = False):
        super().__init__({"model": "smollm2"})
        self.holds, self.refused, self.taken, self.salts = holds, [], 0, []

    def start(self) -> None:
        self.state, self.facts = "ready", FACTS

    def submit(self, inbox: Inbox, choice: int, tokens: list[int], params: dict[str, Any], salt: str) -> int:
        if self.state != "ready":
            raise EngineGone("the engine is gone")
        frame(Add(1, tokens, params, salt))
        self.salts.append(salt)
        try:
            checked = SamplingParams(**params)
            LIMITS.check_prompt(tokens, False)
            LIMITS.check_params(checked)
            if checked.grammar is not None:
                rehearse(checked.grammar)
        except Exception as error:
            self.refused.append((params, error))
        self._next_id += 1
        self._homes[self._next_id] = (inbox, choice)
        self.taken += 1
        if not self.holds:
            asyncio.get_running_loop().call_soon(self._answer, self._next_id, params, tokens)
        return self._next_id

    def _answer(self, request_id: int, params: dict[str, Any], tokens: list[int]) -> None:
        inbox, choice = self._homes.pop(request_id, (None, 0))
        if inbox is None:
            return
        told = Logprob(28, -0.5, [(28, -0.5), (29, -1.5)]) if params.get("logprobs") is not None else None
        asked = params.get("prompt_logprobs") is not None
        prompt = [Logprob(token, -1.0, [(token, -1.0)]) for token in tokens[1:]] if asked else None
        inbox.put(choice, Event(request_id, 28, " a", None, told, prompt, 0, 0.0, 0.0))
        inbox.put(choice, Event(request_id, 29, " b", None, told))
        inbox.put(choice, Event(request_id, 30, " c", "stop", told))

    def abort(self, request_id: int) -> None:
        self._homes.pop(request_id, None)

    async def look(self, cells: int = 2048) -> Picture | None:
        return Picture(1, bytes(16), 16, 0, 0, 0, [])

    async def close(self) -> None:
        self.state = "stopping"


def fake_app(holds: bool = False, traces: Traces | None = None, **options: Any) -> tuple[Any, Desk, FakeLink]:
    desk = make_desk(ServeOptions(engine={"model": "smollm2"}, **options))
    link = FakeLink(holds)
    desk.link, desk.traces = link, traces or desk.traces
    return make_app(desk), desk, link
