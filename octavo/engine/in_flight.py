"""A step that was launched and not yet read: whose results it will bring, and what of them is on the device."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from octavo.engine.batch import Reader, Sampled
from octavo.engine.sampler import Chosen, Sample, choose, top_logprobs
from octavo.engine.transfer import Readback, to_device

__all__ = ["InFlight", "StepTimes", "record_prompt", "take_off"]


@dataclass
class StepTimes:
    """Seconds of host time, summed over `steps`. On a GPU `wait_s` is what the host had to spare, and a device that is
    never waited for stands idle. On a CPU `launch_s` is the computing itself."""

    steps: int = 0
    plan_s: float = 0.0
    build_s: float = 0.0
    launch_s: float = 0.0
    """queueing the model and the sampler"""
    wait_s: float = 0.0
    read_s: float = 0.0
    """tokens to text to events"""

    def clear(self) -> None:
        for field in fields(self):
            setattr(self, field.name, field.default)


@dataclass(frozen=True)
class InFlight:
    readers: tuple[Reader, ...]
    chosen: Chosen | None
    """a token for each reader that samples, in order"""
    logits: Tensor | None
    """`[W, V]`, kept only where somebody will look at them"""
    done: Readback

    @property
    def needs_ids(self) -> bool:
        return any(reader.request.needs_ids for reader in self.readers)

    @property
    def sampled(self) -> Sampled | None:
        if self.chosen is None:
            return None
        return Sampled(self.chosen.ids, {r.request: at for at, r in enumerate(filter(_samples, self.readers))})

    def wait(self) -> None:
        """Until the device has done it. Also a step without results is waited for: the host is one step ahead, not ten,
        so that a request that arrives now is not behind all chunks of a long prompt."""
        self.done.wait()

    def results(self) -> Iterator[tuple[Reader, Sample | None, Tensor | None]]:
        """Each reader with its token, if it sampled one, and its logits, if they were kept."""
        samples = iter(self.chosen.samples() if self.chosen is not None else ())
        begin = 0
        for reader in self.readers:
            rows = None if self.logits is None else self.logits[begin : begin + reader.count]
            begin += reader.count
            yield reader, next(samples) if _samples(reader) else None, rows


def take_off(readers: tuple[Reader, ...], logits: Tensor, eos_ids: tuple[int, ...], keep_logits: bool) -> InFlight:
    """Sample from a step's logits `[W, V]`, without waiting for them. They may be lent until the next step: one whose
    logits are kept is read before that (`needs_ids`, and `on_logits` in the engine)."""
    samplers = [reader.request for reader in readers if _samples(reader)]
    keep_logits = keep_logits or any(reader.request.wants_prompt for reader in readers)
    chosen = choose(_last_rows(readers, logits), samplers, eos_ids) if samplers else None
    done = chosen.back if chosen is not None else Readback([logits[:0]])
    return InFlight(readers, chosen, logits if keep_logits else None, done)


def record_prompt(reader: Reader, rows: Tensor) -> None:
    """Log-probabilities of prompt positions, each once even if preemption makes them run again."""
    request, position = reader.request, reader.position
    done = len(request.prompt_logprobs)
    if request.scores:
        done = request.score_from + sum(len(part) for part in request.scored)
    last = len(request.prompt) - (0 if request.scores else 1)
    keep = rows[max(done - position, 0) : max(last - position, 0)].float().log_softmax(-1)
    if request.scores:
        request.scored.append(keep.clone())
        return
    count = min(request.params.prompt_logprobs or 0, rows.shape[-1])
    for offset, row in enumerate(keep):
        target = request.prompt[max(done, position) + offset + 1]
        request.prompt_logprobs.append(top_logprobs(row, target, count))


def _samples(reader: Reader) -> bool:
    return reader.completes and not reader.request.scores


def _last_rows(readers: tuple[Reader, ...], logits: Tensor) -> Tensor:
    """The row of each reader that samples."""
    last, begin = [], 0
    for reader in readers:
        begin += reader.count
        if _samples(reader):
            last.append(begin - 1)
    if len(last) == len(logits):
        return logits
    [rows] = to_device([np.array(last)], str(logits.device))
    return logits.index_select(0, rows)
