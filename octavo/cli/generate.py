"""The verb `generate`: one prompt to the terminal, or a JSONL file to a JSONL file."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from octavo.base.errors import CheckFailed, UsageError
from octavo.cli.engine_flags import EngineFlags, SamplingFlags, cache_json, load, warn_of_clipping
from octavo.cli.output import JsonTarget, check_json_target, write_json

if TYPE_CHECKING:
    from octavo.engine.llm import LLM
    from octavo.engine.sampling import SamplingParams

__all__ = ["GenerateOptions", "generate"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    prompt: str | None = None
    """The text to continue."""
    chat: bool = False
    """Put the prompt through the model's chat template."""
    input: str | None = None
    """A JSONL file of prompts: objects with `prompt`, `messages` or `prompt_token_ids`, and sampling fields."""
    output: str | None = None
    """Where the answers go, a line each; what is already there is not asked again."""
    logprobs: int | None = None
    json: JsonTarget = None


_NO_SAMPLING, _NO_OPTIONS = SamplingFlags(), GenerateOptions()


def generate(
    engine: EngineFlags, sampling: SamplingFlags = _NO_SAMPLING, options: GenerateOptions = _NO_OPTIONS
) -> None:
    """Continue a prompt, or every prompt of a JSONL file."""
    from octavo.engine.sampling import SamplingParams

    check_json_target(options.json)
    params = SamplingParams(**asdict(sampling), logprobs=options.logprobs)
    if (options.prompt is None) == (options.input is None):
        raise UsageError("generate takes either --prompt TEXT or --input FILE.jsonl (with --output FILE.jsonl)")
    if options.input is not None:
        _generate_file(engine, params, options)
    else:
        _generate_one(engine, params, options)


def _generate_one(engine: EngineFlags, params: "SamplingParams", options: GenerateOptions) -> None:
    llm = load(engine)
    prompt = options.prompt or ""
    ids = llm.tokenizer.chat([{"role": "user", "content": prompt}]) if options.chat else prompt

    def show(event: Any) -> None:
        if options.json != "-":
            sys.stdout.write(event.text)
            sys.stdout.flush()

    [answer] = llm.generate([ids], params, on_event=show)
    if options.json != "-":
        sys.stdout.write("\n")
    warn_of_clipping(llm)
    if options.json is not None:
        completion = {"prompt": prompt, "prompt_token_ids": answer.prompt_token_ids, **asdict(answer.outputs[0])}
        write_json({"outputs": [completion], **_about(llm)}, options.json)


def _generate_file(engine: EngineFlags, params: "SamplingParams", options: GenerateOptions) -> None:
    from octavo.engine.jsonl import open_job, run_job

    if options.output is None:
        raise UsageError("--input needs --output", hint="name the JSONL file that the answers go to")
    job = open_job(
        options.input or "", options.output, params, chat=options.chat
    )  # the files, before minutes of loading
    llm = load(engine) if job.todo else None
    result = run_job(llm, job) if llm else job.nothing_to_do()
    if llm:
        warn_of_clipping(llm)
    summary = {"lines": result.lines, "answered": result.answered, "kept": result.kept, "failed": result.failed}
    print(", ".join(f"{count} {name}" for name, count in summary.items()), file=sys.stderr)
    if options.json is not None:
        outputs = [record for record in job.records() if "error" not in record]
        write_json({"summary": summary, "outputs": outputs, **(_about(llm) if llm else {})}, options.json)
    if result.failed:
        raise CheckFailed(
            f"{result.failed} of {result.lines} lines could not be answered", hint=f"see {options.output}"
        )


def _about(llm: "LLM") -> dict[str, Any]:
    return {"model": llm.source.name, "dtype": llm.dtype, "device": llm.device, "kv_cache": cache_json(llm)}
