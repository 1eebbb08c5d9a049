"""From a row of a data set to a question: what fields there are, and what is wrong with a row."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from octavo.base.errors import UsageError
from octavo.evals.tasks.questions import LABELS, Question
from octavo.evals.tasks.rows import Row

__all__ = ["Layout", "ceval", "hellaswag", "plain", "read_questions", "truthfulqa", "winogrande"]

Fields = Mapping[str, Any]
Layout = Callable[[Fields, str, str], Question]
"""(fields, where they stand, the question's id) -> question. Raises UsageError"""

_TEXTS = ("question", "query", "goal", "context")
_OPTIONS = (("choices",), ("options",), ("endings",), ("A", "B", "C", "D"), ("sol1", "sol2"))
_ANSWERS = ("answer", "gold", "label", "answerKey")


def read_questions(rows: Iterable[Row], name: str, layout: Layout, source: str) -> list[Question]:
    """`id` names a question where a row has one, else its place from 0. Raises UsageError naming the row."""
    found: dict[str, Question] = {}
    for number, (where, row) in enumerate(rows):
        one = layout(row, where, f"{name}/{row.get('id', number)}")
        if one.id in found:
            raise UsageError(f"{where}: the id {one.id} is there twice")
        found[one.id] = one
    if not found:
        raise UsageError(f"{source} has no questions for {name}", hint="is the file empty?")
    return list(found.values())


def plain(row: Fields, where: str, id: str) -> Question:
    """`question` (or `query`, `goal`), `choices` (or `options`, `endings`, A to D, sol1 and sol2), and `answer` (or
    `gold`, `label`, `answerKey`): a number is an index from 0; text is a letter, or else an option's text, or else an
    index. `group` or `subject` if any."""
    text = str(_first(row, _TEXTS, where)).strip().removeprefix("Question: ")
    options, labels = _options(row, where)
    gold = _gold(_first(row, _ANSWERS, where), options, labels, where)
    return _made(where, id=id, group=str(row.get("group", row.get("subject", ""))), text=text, options=options,
                 gold=gold)  # fmt: skip


def ceval(row: Fields, where: str, id: str) -> Question:
    """As `plain`; ids are of a subject, and the wording is Chinese."""
    subject = str(_first(row, ("subject",), where))
    asked = plain(row, where, f"ceval/{subject}/{id.removeprefix('ceval/')}")
    topic = str(row.get("subject_zh", subject.replace("_", " ")))
    return _made(where, id=asked.id, group=subject, text=asked.text, options=asked.options, gold=asked.gold,
                 topic=topic, wording="chinese")  # fmt: skip


def winogrande(row: Fields, where: str, id: str) -> Question:
    """`context_options`, `continuation`, `gold`; or `sentence` with a `_`, `option1`, `option2`, `answer` 1 or 2. Each
    option ends a context, and what comes after is scored (Trinh and Le, 2018)."""
    if "sentence" in row:
        before, blank, rest = str(row["sentence"]).partition("_")
        if not blank:
            raise UsageError(f"{where}: the sentence has no `_`")
        fillers = _texts([_first(row, (name,), where) for name in ("option1", "option2")], where)
        contexts = tuple(before + filler for filler in fillers)
        gold = _gold(str(_first(row, ("answer",), where)), fillers, ("1", "2"), where)
    else:
        contexts = _texts(_first(row, ("context_options",), where), where)
        rest = str(_first(row, ("continuation",), where))
        gold = _gold(_first(row, ("gold",), where), contexts, LABELS, where)
    [rest] = _texts([rest], where)
    text = "\n".join([*contexts, rest])
    return _made(where, id=id, group="", text=text, options=(rest,) * len(contexts), gold=gold, wording="story",
                 contexts=contexts)  # fmt: skip


def truthfulqa(row: Fields, where: str, id: str) -> Question:
    """MC1 (Lin et al., 2021): `mc1_targets` as text -> 0 or 1, or as `choices` and `labels`; one is right. The CSV of
    the authors too: the best answer beside all incorrect ones."""
    if "Best Answer" in row:
        question = str(_first(row, ("Question",), where))
        wrong = (part.strip() for part in str(_first(row, ("Incorrect Answers",), where)).split(";"))
        targets = dict.fromkeys((str(row["Best Answer"]).strip(), *filter(None, wrong)), 0)
        targets[next(iter(targets))] = 1
    else:
        question = str(_first(row, ("question",), where))
        given = _first(row, ("mc1_targets",), where)
        if not isinstance(given, Mapping):
            raise UsageError(f"{where}: mc1_targets is no mapping from answer to 0 or 1")
        if "labels" in given and "choices" in given:
            given = dict(zip(given["choices"], given["labels"], strict=False))
        targets = given
    right = [number for number, mark in enumerate(targets.values()) if mark == 1]
    if len(right) != 1:
        raise UsageError(f"{where}: {len(right)} of {len(targets)} answers are marked as right, not one")
    return _made(where, id=id, group="", text=question.strip(), options=_texts(list(targets), where), gold=right[0])


def hellaswag(row: Fields, where: str, id: str) -> Question:
    """`activity_label`, `ctx` (or `ctx_a` and `ctx_b`), `endings`, `label` (Zellers et al., 2019): the endings go on
    with the text. Marks of wikiHow pages in brackets are left out, as lm-evaluation-harness does."""
    begun = row["ctx_a"] if row.get("ctx_a") else _first(row, ("ctx", "query", "context"), where)
    second = str(row.get("ctx_b") or "") if row.get("ctx_a") else ""
    text = _unmarked(f"{begun} {second[:1].upper()}{second[1:]}")
    if row.get("activity_label"):
        text = f"{_unmarked(str(row['activity_label']))}: {text}"
    options, labels = _options(row, where)
    gold = _gold(_first(row, _ANSWERS, where), options, labels, where)
    endings = _texts([_unmarked(option) for option in options], where)
    return _made(where, id=id, group="", text=text, options=endings, gold=gold, wording="story")


def _unmarked(text: str) -> str:
    return " ".join(re.sub(r"\[[^\]]*\]", "", text.replace(" [title]", ". ")).split())


def _made(where: str, **fields: Any) -> Question:
    """The question, with `where` in what it complains of."""
    try:
        return Question(**fields)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}") from None


def _first(row: Fields, names: Sequence[str], where: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UsageError(
        f"{where}: none of {', '.join(names)} (it has {', '.join(map(str, list(row)[:8]))})",
        hint="a CSV file needs its header row" if ".csv" in where else None,
    )


def _options(row: Fields, where: str) -> tuple[tuple[str, ...], Sequence[str]]:
    """The options and what answers call them: letters, but where the row says else."""
    for names in _OPTIONS:
        if any(name in row for name in names):
            given = row[names[0]] if len(names) == 1 else [row.get(name) for name in names]
            if isinstance(given, Mapping):
                texts = _texts(given.get("text", ()), where)
                return texts, [str(label) for label in given.get("label", LABELS)]
            return _texts(given, where), LABELS
    raise UsageError(f"{where}: no options: none of {', '.join(' '.join(names) for names in _OPTIONS)}")


def _texts(given: Any, where: str) -> tuple[str, ...]:
    """Options as text without spaces around them: one is put before each when it is scored."""
    if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
        raise UsageError(f"{where}: the options are {given!r}, not a list")
    texts = []
    for number, option in enumerate(given):
        if not isinstance(option, str | int | float) or not str(option).strip():
            raise UsageError(f"{where}: option {LABELS[number % len(LABELS)]} is {option!r}")
        texts.append(str(option).strip())
    return tuple(texts)


def _gold(answer: Any, options: tuple[str, ...], labels: Sequence[str], where: str) -> int:
    text, count = str(answer).strip(), len(options)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < count:
        return answer
    letters = tuple(labels[:count])
    for names in (letters, tuple(label.lower() for label in letters), options, tuple(map(str, range(count)))):
        if text in names:
            return names.index(text)
    raise UsageError(f"{where}: the answer `{answer}` is none of {count} options")
