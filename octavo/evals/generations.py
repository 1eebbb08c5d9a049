"""Items that are answered in words: a greedy continuation of each prompt, and the answer that a rule finds in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from octavo.base.errors import RequestError
from octavo.engine.sampling import SamplingParams
from octavo.evals.tasks.extraction import NO_ANSWER, RULES

if TYPE_CHECKING:
    from octavo.checkpoint.tokenizer import Tokenizer
    from octavo.engine.llm import LLM
    from octavo.evals.tasks.items import GeneratedItem

__all__ = ["Prompted", "generated_line", "generated_records", "prompts_of"]

Prompted = tuple["GeneratedItem", list[int]]
"""an item and its prompt's token ids: the same for every cache"""


def prompts_of(tokenizer: "Tokenizer", items: Sequence["GeneratedItem"], longest: int) -> list[Prompted]:
    """Raises RequestError naming an item whose prompt and answer do not fit in `longest` tokens."""
    found = []
    for item in items:
        ids = tokenizer.encode(item.prompt)
        if len(ids) + item.max_tokens > longest:
            raise RequestError(
                f"{item.id} has {len(ids)} tokens and {item.max_tokens} for its answer, and the model takes {longest}",
                hint="use a shorter task or fewer --shots, or raise --max-model-len where the model allows",
            )
        found.append((item, ids))
    return found


def generated_records(llm: "LLM", pairs: Sequence[Prompted]) -> list[dict[str, Any]]:
    """Lines of a result file, in the order of `pairs`, which run together. Raises OctavoError."""
    params = [SamplingParams(temperature=0, max_tokens=item.max_tokens, stop=item.stop) for item, _ in pairs]
    outputs = llm.generate([ids for _, ids in pairs], params) if pairs else []
    return [
        generated_line(item, output.text, len(output.token_ids), str(output.finish_reason))
        for (item, _), output in zip(pairs, outputs, strict=True)
    ]


def generated_line(item: "GeneratedItem", text: str, tokens: int | None, finish: str) -> dict[str, Any]:
    """`output` is the text as it was generated, without the stop; `tokens` counts what was generated (None: unknown);
    `finish` says whether a stop or the limit ended it."""
    answer = RULES[item.rule](text)
    return {
        "id": item.id, "group": item.group, "answer": answer, "gold": item.gold,
        "correct": answer == item.gold and answer != NO_ANSWER, "output": text, "tokens": tokens, "finish": finish,
    }  # fmt: skip
