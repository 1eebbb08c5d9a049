"""The verb `bench`: load on servers with OpenAI's API, timed from outside."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from octavo.base.errors import BadValue, UsageError
from octavo.cli.output import JsonTarget, check_json_target, emit

if TYPE_CHECKING:
    from octavo.serve.bench.run import BenchOptions

__all__ = ["BenchFlags", "bench", "table"]


@Parameter(name="*")
@dataclass(frozen=True)
class BenchFlags:
    what: Literal["serve"]
    """`serve`: servers, by their URLs."""
    urls: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Servers with OpenAI's API, measured one after another with the same requests: http://localhost:8000"""
    _: KW_ONLY
    dataset: str = "random"
    """`random`, a FILE.jsonl with `prompt` or `messages` in each row, or a trace: FILE.csv or trace:FILE."""
    input_len: str = "512"
    """Tokens of a random prompt: 512, or 64:1024 for all lengths between."""
    output_len: str = "128"
    """Tokens of an answer, where the dataset does not say."""
    range_ratio: float = 0.0
    """Widens both lengths: 0.25 makes 512 into 384:640."""
    vocab: int = 30_000
    """Random token ids are drawn below this."""
    num_prompts: int | None = None
    """Requests, of each level of a sweep; a file's rows, else 100; with a limit four times that, at least 32."""
    num_warmups: int = 0
    """Requests before the first level, which are not counted."""
    request_rate: float = math.inf
    """Requests a second; `inf`: all at once."""
    burstiness: float = 1.0
    """1: a Poisson process; less comes in bursts, more is evener."""
    max_concurrency: int | None = None
    """Requests that are under way at once; the others wait here, and are not timed while they wait."""
    concurrency: str | None = None
    """A sweep: 1,2,4,8,16,32."""
    rate_scale: float = 1.0
    """2: a trace runs twice as quickly."""
    endpoint: Literal["auto", "completions", "chat"] = "auto"
    """auto: chat for a file with messages, else completions."""
    model: str | None = None
    """What the servers call the model; if not given, the only one that each lists."""
    api_key: str | None = None
    """If not given, the environment variable OPENAI_API_KEY."""
    temperature: float = 0.0
    ignore_eos: bool = False
    """Answers have all the tokens that were asked for (servers that know `ignore_eos`)."""
    goodput: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Bounds in ms; requests that keep all of them are counted: ttft:200 tpot:50 e2el:5000."""
    seed: int = 0
    timeout: float = 600.0
    """Seconds without a byte after which a request has failed."""
    save_detailed: bool = False
    """Every request by itself, and every answer, in the JSON."""
    chart: str | None = None
    """Draw the levels of all servers into this file: .png or .svg."""
    json: JsonTarget = None


def bench(flags: BenchFlags) -> int:
    """Load servers and time them from outside: throughput, TTFT, TPOT, ITL and end to end."""
    from octavo.cli.output import progress_bar
    from octavo.serve.bench.run import run_bench

    check_json_target(flags.json)
    if flags.chart is not None and not Path(flags.chart).resolve().parent.is_dir():
        raise UsageError(f"cannot write `{flags.chart}`: there is no such folder")
    options = _options(flags)
    with progress_bar() as progress:
        runs = run_bench(options, progress)
    if flags.chart is not None:
        from octavo.serve.bench.chart import bench_chart

        bench_chart(runs, Path(flags.chart))
    emit(runs[0] if len(runs) == 1 else {"runs": runs}, table(runs), flags.json)
    return 0 if any(run["completed"] for run in runs) else 1


def _options(flags: BenchFlags) -> "BenchOptions":
    """The flags as the library takes them. Raises UsageError for what cannot be."""
    from octavo.evals.server import urls_of
    from octavo.serve.bench.datasets import Lengths, Style, Wanted
    from octavo.serve.bench.drive import Ask
    from octavo.serve.bench.figures import parse_goodput
    from octavo.serve.bench.files import open_dataset
    from octavo.serve.bench.run import BenchOptions

    if not flags.urls:
        raise UsageError("no server to measure", hint="octavo bench serve http://localhost:8000")
    if not 1000 <= flags.vocab <= 10_000_000 or not 0 <= flags.temperature <= 10:
        raise BadValue(f"vocab {flags.vocab} (1000 or more), temperature {flags.temperature} (0 to 10)")
    ask, answer = (Lengths.parse(text, flags.range_ratio) for text in (flags.input_len, flags.output_len))
    dataset = open_dataset(flags.dataset, Wanted(input=ask, output=answer, rate_scale=flags.rate_scale))
    chat = dataset.chat if flags.endpoint == "auto" else flags.endpoint == "chat"
    return BenchOptions(
        urls=urls_of(",".join(flags.urls)), dataset=dataset, levels=_levels(flags),
        ask=Ask(style=Style(chat=chat, vocab=flags.vocab), temperature=flags.temperature, ignore_eos=flags.ignore_eos),
        model=flags.model, api_key=flags.api_key or os.environ.get("OPENAI_API_KEY"), num_prompts=flags.num_prompts,
        num_warmups=flags.num_warmups, goodput=parse_goodput(flags.goodput), seed=flags.seed,
        timeout_seconds=flags.timeout, save_detailed=flags.save_detailed,
    )  # fmt: skip


def _levels(flags: BenchFlags) -> list[Any]:
    from octavo.cli.plan import whole_numbers
    from octavo.serve.bench.drive import Arrivals

    if flags.concurrency is None:
        return [Arrivals(flags.request_rate, flags.burstiness, flags.max_concurrency)]
    if flags.max_concurrency is not None:
        raise UsageError("--concurrency is a sweep of --max-concurrency: give one of them")
    return [Arrivals(flags.request_rate, flags.burstiness, limit) for limit in whole_numbers(flags.concurrency)]


def table(runs: Sequence[Mapping[str, Any]]) -> Any:
    """A row for each run, and below it what a reader must know to believe it."""
    from rich.console import Group
    from rich.table import Table

    shown = Table(title="tokens and requests a second; latencies in ms, p50/p99")
    for name in ("server", "at once", "done", "failed", "req/s", "out tok/s", "tok/s", "TTFT", "TPOT", "ITL", "E2E"):
        shown.add_column(name, justify="left" if name == "server" else "right", no_wrap=name != "server")
    goodput = any(run["request_goodput"] is not None for run in runs)
    if goodput:
        shown.add_column("good req/s", justify="right")
    for run in runs:
        cells = [_pair(run, name) for name in ("ttft", "tpot", "itl", "e2el")]
        shown.add_row(
            run["label"], str(run["max_concurrency"] or "all"), str(run["completed"]), str(run["failed"]),
            f"{run['request_throughput']:.2f}", f"{run['output_throughput']:.1f}",
            f"{run['total_token_throughput']:.1f}", *cells,
            *([f"{run['request_goodput']:.2f}"] if goodput else []),
        )  # fmt: skip
    return Group(shown, *dict.fromkeys(note for run in runs for note in _notes(run)))


def _pair(run: Mapping[str, Any], name: str) -> str:
    low, high = run[f"p50_{name}_ms"], run[f"p99_{name}_ms"]
    return "-" if low is None else f"{_short(low)}/{_short(high)}"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _notes(run: Mapping[str, Any]) -> list[str]:
    name, notes = run["label"], []
    notes += [f"{name} failed: {error}" for error in run["errors_first"]]
    if run["token_counts"] == "chunks" and run["completed"]:
        notes.append(f"{name} sends no usage: tokens are chunks that were counted, and input is what was wanted")
    if run["repeated_prompts"]:
        notes.append("the file has too few rows: some prompts were asked twice, and a prefix cache may know them")
    if run["without_text"]:
        notes.append(f"{name}: {run['without_text']} answers had no text, and so no TTFT")
    if run["client_cpu_share"] > 0.8:
        notes.append(f"{name}: this client used {run['client_cpu_share']:.0%} of a core: latencies are partly its own")
    if (run["p99_send_delay_ms"] or 0) > 100 and run["max_concurrency"] is not None:
        notes.append(f"{name}: requests waited for the limit up to {run['p99_send_delay_ms']:,.0f} ms (p99), not timed")
    return notes
