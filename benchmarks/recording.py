"""What each step of a run held, and how long the device took for it."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import machine
from octavo.engine.batch import Batch
from octavo.engine.engine import Engine

__all__ = ["StepRecorder"]


class StepRecorder:
    """Inside, an engine's steps are noted: `[sequences that decode, tokens of their contexts, tokens of prompts]`, and
    when each began, by the device's own clock where there is one. A step lasts until the next one begins."""

    def __init__(self, engine: Engine):
        self._engine, self._run = engine, engine.runner.run
        self._held: list[list[int]] = []
        self._begun: list[Any] = []

    def __enter__(self) -> "StepRecorder":
        self._engine.runner.run = self._noted
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._engine.runner.run = self._run
        self._begun.append(self._now())

    def steps(self) -> list[list[float]]:
        """Each step as above, and its milliseconds. The last one ends with the run."""
        if self._begun and isinstance(self._begun[0], torch.cuda.Event):
            torch.cuda.synchronize()
            at = [self._begun[0].elapsed_time(event) for event in self._begun]
        else:
            at = [1e3 * begun for begun in self._begun]
        lasted = [round(end - begin, 3) for begin, end in pairwise(at)]
        return [[*held, milliseconds] for held, milliseconds in zip(self._held, lasted, strict=True)]

    def write(self, file: Path, **about: Any) -> None:
        """A line for each step, after what is known of the run."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        head = json.dumps({"machine": machine(device), "command": " ".join(["python", *sys.argv]), **about}, indent=1)
        lines = ",\n".join(json.dumps(step) for step in self.steps())
        file.write_text(f'{head[:-2]},\n "steps": [\n{lines}\n ]\n}}\n')

    def _noted(self, batch: Batch) -> Tensor:
        requests = self._engine.scheduler.running
        decoding = [request.computed + 1 for request in requests if request.decoding and not request.closing]
        self._held.append([len(decoding), sum(decoding), len(batch.tokens) - len(decoding)])
        self._begun.append(self._now())
        return self._run(batch)

    def _now(self) -> Any:
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
