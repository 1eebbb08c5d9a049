"""The JSON of `octavo eval` or `octavo compare` as a section: scores, changes beside the control, and a verdict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from octavo.evals.page.blocks import Block, Bullets, Cell, Chart, Paragraph, Point, Quantity, Row, Section, Table
from octavo.evals.page.charts import difference_figure, flips_figure, kl_figure, page_chart
from octavo.evals.page.items import Found
from octavo.evals.page.numbers import count, interval, one_line, percent, points, quantity, rough

__all__ = ["eval_section"]

Data: TypeAlias = Mapping[str, Any]
Form: TypeAlias = Callable[[Any], Cell]
Column: TypeAlias = tuple[str, str, Form]
_QUESTION_LETTERS = 300


def _signed(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:+.2e}")


def _perplexity(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:.4f}")


def _plain_points(value: Any) -> str | Quantity:
    return quantity(value, lambda number: f"{number:.2f}")


_SCORES: tuple[Column, ...] = (
    ("score", "accuracy", percent), ("perplexity", "perplexity", _perplexity),
    ("next token right", "next_token_accuracy", percent), ("items", "n", count), ("tokens", "tokens", count),
)  # fmt: skip
_CHANGES: tuple[Column, ...] = (
    ("difference, points", "difference", points), ("95 %", "ci95", lambda pair: interval(pair, points)),
    ("gained", "gained", count), ("lost", "lost", count), ("other wrong", "changed_wrong", count),
    ("changed", "changed", count), ("McNemar p", "mcnemar_p", rough), ("drop below", "drop_at_most", _plain_points),
    ("nats per token", "nll_difference", _signed),
    ("95 % ", "nll_difference_ci95", lambda pair: interval(pair, _signed)),
)  # fmt: skip
_DIVERGENCE: tuple[Column, ...] = (
    ("same top token", "same_top", percent), ("where sure", "same_top_confident", percent),
    ("KL mean", "kl_mean", rough), ("median", "kl_median", rough), ("99 %", "kl_p99", rough),
    ("99.9 %", "kl_p999", rough), ("largest", "kl_max", rough),
)  # fmt: skip


def eval_section(key: str, data: Data, found: Found) -> Section:
    """`key`: what ids of the section begin with; `found`: the changed items to show."""
    control = data.get("control")
    beside = [*data["pairs"], *([control] if control else [])]
    blocks: list[Block] = [_about(data), *_letter_form(data), _scores(data)]
    if beside:
        first = one_line(beside[0]["a"])
        blocks += [Bullets(tuple(_verdict(pair) for pair in data["pairs"]))]
        blocks += _table(f"What changed beside {first}", _CHANGES, beside, control)
        blocks += [_control(data), *_charts(key, beside)]
        blocks += _table(f"Distributions beside {first}, KL in nats", _DIVERGENCE, beside, control)
    blocks += _items(found)
    summary = tuple(_verdict(pair) for pair in data["pairs"])
    return Section(_title(data), tuple(blocks), summary)


def _title(data: Data) -> str:
    return f"{data['model']} on {data['task']}" if "model" in data and "task" in data else "Two result files"


def _about(data: Data) -> Paragraph:
    """A sentence of the facts that are there."""
    facts: list[tuple[str | Quantity, ...]] = []
    for name, before, after in (
        ("items", "", " items"), ("form", "", " form"), ("shots", "", " shots"), ("compute_dtype", "computed in ", ""),
        ("device", "on ", ""), ("source", "from ", ""), ("seconds", "", "\N{NO-BREAK SPACE}s"),
    ):  # fmt: skip
        if data.get(name) is not None:
            facts.append((before, quantity(data[name], lambda number: f"{number:,}"), after))
    parts = [part for number, fact in enumerate(facts) for part in ((", ", *fact) if number else fact)]
    return Paragraph((*parts, "."))


def _letter_form(data: Data) -> Iterator[Block]:
    found = data.get("letter_form")
    if isinstance(found, Mapping) and {"label", "share", "items"} <= found.keys():
        so = ": it could show no damage, and the cloze form was used" if found.get("blind") else ""
        yield Paragraph((
            f"In the letter form {found['label']} was ", percent(found["share"]), " of the answers to ",
            count(found["items"]), f" questions{so}.",
        ), "note")  # fmt: skip


def _scores(data: Data) -> Table:
    scores: Mapping[str, Data] = data["scores"]
    columns = [column for column in _SCORES if any(column[1] in score for score in scores.values())]
    answers = any("answers" in score for score in scores.values())
    rows = []
    for name, score in scores.items():
        cells: list[Cell] = [name, *(form(score.get(field)) for _, field, form in columns)]
        form = percent if "accuracy" in score else _perplexity
        cells.insert(2, interval(score.get("ci95"), form))
        rows.append(Row((*cells, *([_answers(score.get("answers"))] if answers else []))))
    head = ["cache", *(title for title, _, _ in columns)]
    head.insert(2, "95 %")
    return Table("Scores", (*head, *(["answers"] if answers else [])), tuple(rows))


def _answers(found: Any) -> Cell:
    """The most frequent answers, so that a model that always says A is seen."""
    if not isinstance(found, Mapping):
        return ""
    parts = [
        (", " if number else "", f"{label} ", count(n)) for number, (label, n) in enumerate(list(found.items())[:5])
    ]
    return tuple(part for three in parts for part in three)


def _verdict(pair: Data) -> Point:
    if "verdict" in pair:
        return Point(f"{pair['b']}:", (str(pair["verdict"]),), bool(pair.get("equivalent")))
    if "nll_difference" not in pair:
        return Point(f"{pair['b']}:", (points(pair["difference"]), " points"))
    parts = (_signed(pair["nll_difference"]), " nats per token, mean KL ", rough(pair.get("kl_mean")))
    return Point(f"{pair['b']}:", parts)


def _table(caption: str, columns: Sequence[Column], pairs: Sequence[Data], control: Data | None) -> list[Block]:
    """Columns that at least one pair has; the control is the last row and says so."""
    shown = [column for column in columns if any(pair.get(column[1]) is not None for pair in pairs)]
    if not shown:
        return []
    rows = tuple(
        Row((_name(pair, control), *(form(pair.get(field)) for _, field, form in shown)), "control" * (pair is control))
        for pair in pairs
    )
    return [Table(caption, ("cache", *(title.strip() for title, _, _ in shown)), rows)]


def _name(pair: Data, control: Data | None) -> str:
    return f"control ({pair['a']} again)" if pair is control else pair["b"]


def _control(data: Data) -> Paragraph:
    control = data.get("control")
    if not control:
        return Paragraph(
            ("No control was run: how many answers change by the order of sums alone is not known.",), "note"
        )
    what = f"The control is {control['a']} once more, in other batches and another order. "
    if "gained" not in control:
        return Paragraph((what, "Its mean KL is the noise floor: ", rough(control.get("kl_mean")), " nats."))
    changed = control.get("changed")
    then = "so no change comes from batches or order." if changed == 0 else "which is the noise to compare with."
    return Paragraph((what, "It changed ", count(changed), " answers of ", count(control.get("n")), f", {then}"))


def _charts(key: str, pairs: Sequence[Data]) -> Iterator[Chart]:
    choice = [pair for pair in pairs if "gained" in pair]
    text = [pair for pair in pairs if "nll_difference" in pair]
    by_position = [pair for pair in pairs if pair.get("kl_by_position")]
    if choice:
        title = "Difference of accuracy to the baseline with its 95 % interval, for each cache"
        yield page_chart(
            f"{key}-difference", title, f"{title}. Full marks: it is shown that the drop is below the margin.",
            lambda: difference_figure(choice, "difference", "ci95", "points of accuracy"),
        )  # fmt: skip
        title = "Answers that changed, for each cache: gained, lost, and from one wrong answer to another"
        yield page_chart(f"{key}-flips", title, f"{title}.", lambda: flips_figure(choice))
    if text:
        title = "Difference of the negative log-likelihood to the baseline with its 95 % interval, for each cache"
        yield page_chart(
            f"{key}-nll", title, f"{title}. Right of zero is worse.",
            lambda: difference_figure(text, "nll_difference", "nll_difference_ci95", "nats per token"),
        )  # fmt: skip
    if by_position:
        title = "Mean KL against the position in the text, for each cache"
        yield page_chart(f"{key}-kl", title, f"{title}. Means of zero are left out.", lambda: kl_figure(by_position))


def _items(found: Found) -> list[Block]:
    if found.why_not:
        return [Paragraph((found.why_not,), "note")]
    if not found.items:
        return []
    asked = any(item.question for item in found.items)
    rows = tuple(
        Row((
            item.id, item.b, item.change, item.gold, item.answer_a, rough(item.margin_a), item.answer_b,
            rough(item.margin_b), rough(item.kl), *([one_line(item.question)[:_QUESTION_LETTERS]] if asked else []),
        ))
        for item in found.items
    )  # fmt: skip
    head = ("item", "cache", "change", "right", "baseline's answer", "margin", "its answer", "margin", "KL")
    caption = "Items that changed, those first of which the baseline was surest"
    return [Table(caption, (*head, *(["question"] if asked else [])), rows)]
