"""The table of verbs. Adding one touches its own module and one line here."""

from dataclasses import dataclass

from octavo.base.table import Table

__all__ = ["VERBS", "Verb"]


@dataclass(frozen=True)
class Verb:
    """`target` is `module:function`, imported when the verb is called; the function takes one options dataclass."""

    name: str
    target: str
    summary: str


_ALL = (
    Verb("generate", "octavo.cli.generate:generate", "Continue a prompt, or every prompt of a JSONL file."),
    Verb("serve", "octavo.cli.serve:serve", "Serve a model over an OpenAI-compatible API."),
    Verb("chat", "octavo.cli.chat:chat", "Talk to a model, or to a server, in the terminal."),
    Verb(
        "calibrate", "octavo.cli.calibrate:calibrate", "Measure what a cache needs to know, and write it as an asset."
    ),
    Verb(
        "export-scales", "octavo.cli.export_scales:export_scales", "Write an asset's scales as other engines read them."
    ),
    Verb("eval", "octavo.cli.evaluate:evaluate", "Score a task with several caches side by side, item by item."),
    Verb("compare", "octavo.cli.compare:compare", "Two result files of the same items: what changed, what it proves."),
    Verb("memory", "octavo.cli.memory:memory", "Fill caches by batch size, measure, and set the law beside it."),
    Verb("report", "octavo.cli.report:report", "One page from what eval, compare, memory and demo wrote."),
    Verb("plan", "octavo.cli.plan:plan", "What a model's KV cache costs, by arithmetic from its config alone."),
    Verb("top", "octavo.cli.top:top", "A server's load, cache and sequences, live in the terminal."),
    Verb("bench", "octavo.cli.bench:bench", "Load servers with OpenAI's API and time them from outside."),
    Verb("demo", "octavo.cli.demo:demo", "The main job on the packaged model: two caches side by side."),
    Verb("env", "octavo.cli.env:env", "What this machine has: versions, cores, memory, devices, kernels."),
)

VERBS: Table[Verb] = Table("verb", {verb.name: verb for verb in _ALL})
