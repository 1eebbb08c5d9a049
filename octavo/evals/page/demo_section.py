"""The JSON of `octavo demo` as a section: what two caches took, how far apart they are, and their texts."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from octavo.evals.page.blocks import Block, Paragraph, Point, Row, Section, Table
from octavo.evals.page.numbers import bytes_, count, one_line, percent, rough, tenths

__all__ = ["demo_section"]

Data: TypeAlias = Mapping[str, Any]
_TEXT_LETTERS = 300


def demo_section(data: Data) -> Section:
    blocks: list[Block] = [_about(data), _costs(data), _agreement(data), *_identical(data), *_texts(data)]
    found, folded = data["divergence"], data["folded"]["dtype"]
    summary = (
        Point(f"{folded}:", (
            "the same token first at ", percent(found.get("same_top")), " of ", count(found.get("tokens")),
            f" positions beside {data['baseline']['dtype']}",
        )),
    )  # fmt: skip
    return Section(f"Chats through two caches: {data.get('model', 'a model')}", tuple(blocks), summary)


def _about(data: Data) -> Paragraph:
    where = f" parameters, computed in {data.get('compute_dtype', '?')} on {data.get('device', '?')}."
    return Paragraph((count(data.get("parameters")), where))


def _costs(data: Data) -> Table:
    base, folded = data["baseline"], data["folded"]
    rows = [Row(("plan", str(base.get("plan", "")), str(folded.get("plan", ""))))]
    for name, field, form in (
        ("bytes per token", "bytes_per_token", bytes_), ("bytes allocated", "allocated_bytes", bytes_),
        ("tokens that fit", "capacity_tokens", count), ("bytes in use at the peak", "peak_bytes", bytes_),
        ("output tokens", "output_tokens", count), ("seconds", "seconds", tenths),
        ("output tokens a second", "output_tokens_per_second", tenths),
    ):  # fmt: skip
        rows.append(Row((name, form(base.get(field)), form(folded.get(field)))))
    return Table("What each cache took", ("", base["dtype"], folded["dtype"]), tuple(rows))


def _agreement(data: Data) -> Table:
    rows = []
    for name, found in (
        (data["folded"]["dtype"], data["divergence"]),
        ("control (an exact cache)", data.get("control")),
    ):
        if found:
            numbers = (rough(found.get(field)) for field in ("kl_mean", "kl_median", "kl_p99", "kl_max"))
            kind = "control" if found is data.get("control") else ""
            rows.append(Row((name, count(found.get("tokens")), percent(found.get("same_top")), *numbers), kind))
    head = ("cache", "positions", "same top token", "KL mean", "median", "99 %", "largest")
    return Table(f"Given the tokens of {data['baseline']['dtype']}, KL in nats", head, tuple(rows))


def _identical(data: Data) -> Iterator[Paragraph]:
    if data.get("identical_answers") is not None:
        yield Paragraph((
            count(data["identical_answers"]), " greedy answers are identical to the last token. After one token that "
            "differs a text goes its own way, so this says less than the table above.",
        ))  # fmt: skip


def _texts(data: Data) -> Iterator[Table]:
    rows = tuple(
        Row((
            one_line(answer["prompt"]), _clipped(answer["baseline"]),
            "identical" if answer.get("identical") else _clipped(answer["folded"]), percent(answer.get("same_top")),
        ))
        for answer in data["answers"]
    )  # fmt: skip
    if rows:
        head = ("prompt", data["baseline"]["dtype"], data["folded"]["dtype"], "same top")
        yield Table(f"Greedy answers, their first {_TEXT_LETTERS} letters", head, rows)


def _clipped(text: str) -> str:
    flat = one_line(text)
    return flat if len(flat) <= _TEXT_LETTERS else flat[: _TEXT_LETTERS - 1] + "…"
