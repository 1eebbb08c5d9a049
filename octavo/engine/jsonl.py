"""Offline batches: a JSONL file of prompts in, a JSONL file of answers out, resumable line by line.

Each answer carries the number of its input line and a digest of it, so that a second run answers only what is
missing, changed or failed, whatever interrupted the first.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from octavo.base.errors import OctavoError, RequestError, UsageError
from octavo.engine.llm import LLM
from octavo.engine.request import Request, TokenEvent
from octavo.engine.sampling import SamplingParams

__all__ = ["Job", "JobResult", "open_job", "run_job"]

_SAMPLING_FIELDS = frozenset(SamplingParams.__dataclass_fields__)
_SOURCES = ("prompt", "messages", "prompt_token_ids")


@dataclass(frozen=True)
class JobResult:
    lines: int
    answered: int
    kept: int
    failed: int


@dataclass(frozen=True)
class Line:
    """One input line. `error` says why it cannot be a request; then `source` is empty."""

    number: int
    digest: str
    source: dict[str, Any]
    params: SamplingParams
    error: str | None = None


@dataclass
class Job:
    output: Path
    lines: list[Line]
    kept: int
    chat: bool
    todo: list[Line] = field(default_factory=list)

    def nothing_to_do(self) -> JobResult:
        return JobResult(len(self.lines), 0, self.kept, 0)

    def records(self) -> list[dict[str, Any]]:
        """The last record of each line, in order of the input."""
        latest = {record["line"]: record for record in _read_records(self.output)}
        return [latest[number] for number in sorted(latest)]


def open_job(source: str, output: str, params: SamplingParams, chat: bool = False) -> Job:
    """Read the input, see what is already answered, and make sure that the output can be written. Raises UsageError."""
    lines = list(_read_lines(Path(source), params))
    if not lines:
        raise UsageError(f"`{source}` has no lines")
    target = Path(output)
    if target.exists() and Path(source).samefile(target):
        raise UsageError("--input and --output are the same file")
    _mend_last_line(target)
    done = {(record["line"], record["digest"]) for record in _read_records(target) if "error" not in record}
    todo = [line for line in lines if (line.number, line.digest) not in done]
    return Job(target, lines, len(lines) - len(todo), chat, todo)


def run_job(llm: LLM, job: Job) -> JobResult:
    """Answer every line of `job.todo`, writing each as soon as it is complete. Nothing is written twice."""
    from rich.console import Console
    from rich.progress import Progress

    running: dict[str, tuple[Line, Request]] = {}
    failed = 0
    queue = iter(job.todo)
    with Progress(console=Console(stderr=True), transient=True) as progress, _open(job.output) as out:
        task = progress.add_task("generating", total=len(job.todo))
        try:
            exhausted = False
            while not exhausted or llm.engine.busy:
                # a few batches ahead of the engine: a million lines need not be requests at once
                while not exhausted and len(running) < 4 * llm.options.max_num_seqs:
                    line = next(queue, None)
                    if line is None:
                        exhausted = True
                        break
                    error = _start(llm, line, job.chat, running)
                    if error is not None:
                        failed += 1
                        _write(out, job.output, _record(line, error=error))
                        progress.advance(task)
                for event in llm.engine.step():
                    if event.finish_reason is not None:
                        _write(out, job.output, _answer(*running.pop(event.request_id), event))
                        progress.advance(task)
        except BaseException:
            llm.engine.drain()
            raise
    return JobResult(len(job.lines), len(job.todo) - failed, job.kept, failed)


def _start(llm: LLM, line: Line, chat: bool, running: dict[str, tuple[Line, Request]]) -> str | None:
    """Queue a line; returns why it cannot be, if so."""
    if line.error is not None:
        return line.error
    try:
        ids = _prompt_ids(llm, line.source, chat)
        request_id = f"line-{line.number}"
        running[request_id] = (line, llm.engine.add(request_id, ids, line.params))
    except OctavoError as error:
        return error.message
    return None


def _prompt_ids(llm: LLM, source: dict[str, Any], chat: bool) -> list[int]:
    if "messages" in source:
        return llm.tokenizer.chat(source["messages"])
    if "prompt_token_ids" in source:
        return source["prompt_token_ids"]
    if chat:
        return llm.tokenizer.chat([{"role": "user", "content": source["prompt"]}])
    return llm.tokenizer.encode(source["prompt"]) if source["prompt"] else []


def _answer(line: Line, request: Request, event: TokenEvent) -> dict[str, Any]:
    text = request.text.text if request.text else ""
    return _record(line, text=text, token_ids=request.output, finish_reason=event.finish_reason)


def _record(line: Line, **fields: Any) -> dict[str, Any]:
    own_id = {"id": line.source["id"]} if "id" in line.source else {}
    return {"line": line.number, "digest": line.digest, **own_id, **fields}


def _read_lines(path: Path, params: SamplingParams) -> Iterator[Line]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from error
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            # the sampling defaults are part of the digest: other flags, other answers
            digest = hashlib.sha256(line + repr(sorted(asdict(params).items())).encode()).hexdigest()[:16]
            yield _parse(number, digest, line, params)


def _parse(number: int, digest: str, line: bytes, params: SamplingParams) -> Line:
    try:
        found = json.loads(line)
        if not isinstance(found, dict) or sum(name in found for name in _SOURCES) != 1:
            raise RequestError(f"line {number}: not an object with exactly one of {', '.join(_SOURCES)}")
        _check_source(number, found)
        unknown = set(found) - _SAMPLING_FIELDS - {*_SOURCES, "id"}
        if unknown:
            raise RequestError(f"line {number}: unknown field {', '.join(sorted(unknown))}")
        own = {name: value for name, value in found.items() if name in _SAMPLING_FIELDS}
        return Line(number, digest, found, replace(params, **own))
    except UnicodeDecodeError:
        return Line(number, digest, {}, params, f"line {number}: not UTF-8")
    except json.JSONDecodeError as error:
        return Line(number, digest, {}, params, f"line {number}: not JSON ({error.msg} at column {error.colno})")
    except RequestError as error:
        return Line(number, digest, {}, params, error.message)
    except (OctavoError, TypeError, ValueError, AttributeError) as error:
        return Line(number, digest, {}, params, f"line {number}: {getattr(error, 'message', error)}")


def _check_source(number: int, found: dict[str, Any]) -> None:
    ids, prompt = found.get("prompt_token_ids", []), found.get("prompt", "")
    if not isinstance(prompt, str):
        raise RequestError(f"line {number}: `prompt` must be text")
    if not isinstance(ids, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise RequestError(f"line {number}: `prompt_token_ids` must be a list of whole numbers")
    messages = found.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError(f"line {number}: `messages` must be a list of objects with `role` and `content`")


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():  # new, or a pipe or device that keeps nothing
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not {"line", "digest"} <= record.keys():
                raise UsageError(
                    f"`{path}` line {number} is not an answer of an earlier run", hint="name another --output file"
                )
            yield record


def _mend_last_line(path: Path) -> None:
    """Cut off a last line that was not written to its end (an earlier run was killed, or the disk was full)."""
    if not path.is_file():  # new, or a pipe or device that keeps nothing
        return
    raw = path.read_bytes()
    end = raw.rfind(b"\n") + 1
    if end != len(raw):
        os.truncate(path, end)


def _open(path: Path) -> IO[bytes]:
    """Unbuffered: what a full disk refuses must not come back when the file is closed."""
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"cannot write `{path}`: {error.strerror}") from error


def _write(out: IO[bytes], path: Path, record: dict[str, Any]) -> None:
    line = memoryview((json.dumps(record, ensure_ascii=False) + "\n").encode())
    try:
        while line:
            line = line[out.write(line) :]
    except OSError as error:
        raise UsageError(
            f"cannot write `{path}`: {error.strerror}", hint="the answers so far are kept; make room and run again"
        ) from error
