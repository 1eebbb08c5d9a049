"""Prompts whose answer is a number: GSM8K's word problems and LongEval's lines."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.base.errors import UsageError
from octavo.evals.tasks.extraction import NO_ANSWER, marked_or_last
from octavo.evals.tasks.items import GeneratedItem
from octavo.evals.tasks.places import DataSet, HubSet, rows_of
from octavo.evals.tasks.rows import read_rows, split_name

__all__ = ["Problem", "problem_item", "read_gsm8k", "read_longeval"]

_GSM8K = DataSet("gsm8k", "gsm8k", HubSet("openai/gsm8k", "main", "test", "train"))
_GSM8K_TOKENS = 512
_LINE_TOKENS = 24


@dataclass(frozen=True)
class Problem:
    """`working` ends with `#### NUMBER`."""

    id: str
    group: str
    text: str
    working: str
    gold: str


def read_gsm8k(data: str | None, split: str) -> tuple[list[Problem], str]:
    """GSM8K (Cobbe et al., 2021): rows with `question` and `answer`. Raises UsageError naming the row."""
    source, rows = rows_of(_GSM8K, data, split)
    found = []
    for number, (where, row) in enumerate(rows):
        text, working = row.get("question"), row.get("answer")
        if not isinstance(text, str) or not isinstance(working, str):
            raise UsageError(f"{where}: no `question` and `answer`", hint="a CSV file needs its header row")
        gold = marked_or_last(working) if "####" in working else NO_ANSWER
        if gold == NO_ANSWER:
            raise UsageError(f"{where}: the answer does not end with `#### NUMBER`")
        found.append(Problem(f"gsm8k/{number}", "", text.strip(), working.strip(), gold))
    if not found:
        raise UsageError(f"{source} has no questions for gsm8k", hint="is the file empty?")
    return found, source


def problem_item(problem: Problem, examples: Sequence[Problem] = ()) -> GeneratedItem:
    shots = "".join(f"Question: {one.text}\nAnswer: {one.working}\n\n" for one in examples)
    return GeneratedItem(
        problem.id, problem.group, f"{shots}Question: {problem.text}\nAnswer:", problem.gold, ("Question:",),
        _GSM8K_TOKENS, "marked or last number",
    )  # fmt: skip


def read_longeval(group: str, data: str | None) -> tuple[list[GeneratedItem], str]:
    """LongEval's line retrieval (Li et al., 2023): a record of lines, each with a number, and one to recall. `data` is
    a file, or a folder of N_lines files; `group` chooses some of them: "200,400". After what the source asks the answer
    is begun, so that a model without a chat template can go on. Raises UsageError."""
    if data is None:
        raise UsageError("longeval-lines needs its data", hint="give the folder or file of N_lines.jsonl with --data")
    path = Path(data).expanduser()
    found: list[GeneratedItem] = []
    for file in _line_files(path, group) if path.is_dir() else [path]:
        base = split_name(file.name)[0]
        for number, (where, row) in enumerate(read_rows(file)):
            prompt, gold, key = row.get("prompt"), row.get("expected_number"), row.get("random_idx")
            if isinstance(key, list) and key:
                key = key[0]
            if not isinstance(prompt, str) or not isinstance(gold, int) or not isinstance(key, str):
                raise UsageError(f"{where}: no `prompt`, `expected_number` and `random_idx`")
            lines = str(row.get("num_lines", base.removesuffix("_lines")))
            asked = f"{prompt.rstrip()}\nAnswer: The <REGISTER_CONTENT> in line {key} is"
            found.append(GeneratedItem(f"longeval/{base}/{number}", f"{lines} lines", asked, str(gold), ("\n",),
                                       _LINE_TOKENS, "first number"))  # fmt: skip
    if not found:
        raise UsageError(f"{path} has no prompts for longeval-lines", hint="is the file empty?")
    return found, path.name


def _line_files(folder: Path, group: str) -> list[Path]:
    """The N_lines files, by N."""
    every: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        base, kind = split_name(file.name)
        if kind and (match := re.fullmatch(r"(\d+)_lines", base)):
            every[int(match.group(1))] = file
    names = list(filter(None, (part.strip() for part in group.split(","))))
    unknown = [name for name in names if not name.isdigit() or int(name) not in every]
    if unknown or not every:
        have = ", ".join(map(str, sorted(every))) or "none"
        raise UsageError(f"`{folder}` has no {unknown[0] if unknown else 'N'}_lines file (have {have})")
    return [every[lines] for lines in (sorted(map(int, names)) if names else sorted(every))]
