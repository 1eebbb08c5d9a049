"""Multiple choice: how a question with its options becomes what a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.errors import UsageError
from octavo.evals.tasks.items import ChoiceItem

__all__ = ["FORMS", "LABELS", "Question", "make_item"]

LABELS = "ABCDEFGHIJ"
FORMS = ("letter", "cloze")


@dataclass(frozen=True)
class Question:
    """`topic`: what the letter form's first line speaks of; empty leaves the line out."""

    id: str
    group: str
    text: str
    options: tuple[str, ...]
    gold: int
    topic: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(LABELS):
            raise UsageError(f"{self.id}: {len(self.options)} options (2 to {len(LABELS)})")
        if not 0 <= self.gold < len(self.options):
            raise UsageError(f"{self.id}: the answer is option {self.gold} of {len(self.options)}")


def make_item(question: Question, form: str, examples: Sequence[Question] = ()) -> ChoiceItem:
    """letter: the form of Hendrycks et al. (2020): options with letters, then `Answer:`, and the letters are scored.
    cloze: as GPT-3 was tested (Brown et al., 2020): the question, `Answer:`, and each option's own text is scored."""
    labels = tuple(LABELS[: len(question.options)])
    if form == "letter":
        head = f"The following are multiple choice questions (with answers) about {question.topic}.\n\n"
        shots = "".join(f"{_lettered(one)} {LABELS[one.gold]}\n\n" for one in examples)
        context = (head if question.topic else "") + shots + _lettered(question)
        options = tuple(f" {label}" for label in labels)
    elif form == "cloze":
        shots = "".join(f"{_asked(one)} {one.options[one.gold]}\n\n" for one in examples)
        context, options = shots + _asked(question), tuple(f" {option}" for option in question.options)
    else:
        raise UsageError(f"form: `{form}` (have {', '.join(FORMS)})")
    lengths = tuple(len(option) for option in question.options)
    return ChoiceItem(question.id, question.group, context, options, labels, question.gold, lengths)


def _lettered(question: Question) -> str:
    lines = [question.text, *(f"{label}. {option}" for label, option in zip(LABELS, question.options, strict=False))]
    return "\n".join([*lines, "Answer:"])


def _asked(question: Question) -> str:
    return f"Question: {question.text}\nAnswer:"
