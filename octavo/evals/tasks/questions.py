"""Multiple choice: how a question with its options becomes what a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.errors import UsageError
from octavo.base.table import Table
from octavo.evals.tasks.items import ChoiceItem

__all__ = ["FORMS", "LABELS", "WORDINGS", "Question", "Wording", "make_item"]

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORMS = ("letter", "cloze")


@dataclass(frozen=True)
class Wording:
    """`head` opens the letter form and speaks of the topic; `asked` is the cloze form's context, `answer` ends the
    letter form's."""

    head: str
    asked: str
    answer: str


WORDINGS = Table(
    "wording",
    {
        "english": Wording(
            "The following are multiple choice questions (with answers) about {topic}.\n\n",
            "Question: {text}\nAnswer:",
            "Answer:",
        ),
        "chinese": Wording(
            "以下是中国关于{topic}考试的单项选择题，请选出其中的正确答案。\n\n", "问题：{text}\n答案：", "答案："
        ),
        "story": Wording("", "{text}", ""),
    },
)
"""english: Hendrycks et al. (2020) and Brown et al. (2020). chinese: C-Eval (Huang et al., 2023). story: the options
continue the text itself"""


@dataclass(frozen=True)
class Question:
    """`topic`: what the letter form's first line speaks of; empty leaves the line out. `contexts`: what stands before
    each option, where that differs; in place of the text."""

    id: str
    group: str
    text: str
    options: tuple[str, ...]
    gold: int
    topic: str = ""
    wording: str = "english"
    contexts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(LABELS):
            raise UsageError(f"{self.id}: {len(self.options)} options (2 to {len(LABELS)})")
        if not 0 <= self.gold < len(self.options):
            raise UsageError(f"{self.id}: the answer is option {self.gold} of {len(self.options)}")


def make_item(question: Question, form: str, examples: Sequence[Question] = ()) -> ChoiceItem:
    """letter: the form of Hendrycks et al. (2020): options with letters, then `Answer:`, and the letters are scored.
    cloze: as GPT-3 was tested (Brown et al., 2020): the question, `Answer:`, and each option's own text is scored."""
    labels, contexts = tuple(LABELS[: len(question.options)]), None
    if form == "letter":
        head = WORDINGS[question.wording].head.format(topic=question.topic) if question.topic else ""
        shots = "".join(f"{_lettered(one)} {LABELS[one.gold]}\n\n" for one in examples)
        context = head + shots + _lettered(question)
        options = tuple(f" {label}" for label in labels)
    elif form == "cloze":
        shots = "".join(f"{_asked(one, one.gold)} {one.options[one.gold]}\n\n" for one in examples)
        context, options = shots + _asked(question, 0), tuple(f" {option}" for option in question.options)
        if question.contexts is not None:
            contexts = tuple(shots + _asked(question, option) for option in range(len(options)))
    else:
        raise UsageError(f"form: `{form}` (have {', '.join(FORMS)})")
    lengths = tuple(len(option) for option in question.options)
    return ChoiceItem(question.id, question.group, context, options, labels, question.gold, lengths, contexts)


def _lettered(question: Question) -> str:
    lines = [question.text, *(f"{label}. {option}" for label, option in zip(LABELS, question.options, strict=False))]
    return "\n".join([*lines, WORDINGS[question.wording].answer])


def _asked(question: Question, option: int) -> str:
    text = question.text if question.contexts is None else question.contexts[option]
    return WORDINGS[question.wording].asked.format(text=text)
