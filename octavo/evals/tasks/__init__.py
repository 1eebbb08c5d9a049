"""Tasks by name: what `--task` means."""

from octavo.base.errors import UnknownChoice, UsageError
from octavo.evals.tasks.catalogue import TASKS, Wanted, own_file
from octavo.evals.tasks.items import ChoiceItem, GeneratedItem, Task, TextItem

__all__ = ["TASKS", "ChoiceItem", "GeneratedItem", "Task", "TextItem", "open_task"]


def open_task(
    name: str, *, form: str = "auto", shots: int = 0, data: str | None = None, examples: str | None = None,
    limit: int | None = None, seed: int = 0,
) -> Task:  # fmt: skip
    """One of TASKS, with a group after a colon where it has some (`mmlu:stem`), or a file of questions.

    `data` is a file or folder, `examples` what the `shots` before each question are from; without them a package or the
    hub. `limit` takes that many items at random (by `seed`), in their order. Raises UsageError or UnknownChoice."""
    own = own_file(name)
    if own is not None:
        kind, group, data = name, "", name if data is None else data
    else:
        kind, _, group = name.partition(":")
    if own is None:
        kind = _known(kind)
    entry = own or TASKS[kind]
    if form not in ("auto", *entry.forms):
        raise UsageError(f"form: `{form}` (the task {kind} has {', '.join(entry.forms)})")
    chosen = entry.forms[0] if form == "auto" else form
    wanted = Wanted(f"{kind}:{group}" if group else kind, group, chosen, shots, data, examples, limit, seed)
    return entry.open(wanted)


def _known(kind: str) -> str:
    try:
        return TASKS.resolve(kind)
    except UnknownChoice as error:
        hint = error.hint or "questions of your own are a FILE.jsonl, .csv or .parquet"
        raise UnknownChoice(error.message, hint=hint) from None
