"""What a task is made of: items with options, running text, and prompts to answer. Pure: no torch."""

import hashlib
from dataclasses import dataclass

__all__ = ["ChoiceItem", "GeneratedItem", "Task", "TextItem"]


@dataclass(frozen=True)
class ChoiceItem:
    """A question. Option o continues the context, or `contexts[o]` where each option has its own."""

    id: str
    """stable, and unique in its task: `mmlu/astronomy/12`"""
    group: str
    context: str
    options: tuple[str, ...]
    """exactly what is scored, with its leading space where the form has one"""
    labels: tuple[str, ...]
    """what options are called in results"""
    gold: int
    lengths: tuple[int, ...]
    """characters of each option, for answers that are chosen by log-probability per character"""
    contexts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TextItem:
    """A document, for perplexity."""

    id: str
    group: str
    text: str


@dataclass(frozen=True)
class GeneratedItem:
    """A prompt that is continued greedily, until one of `stop` or `max_tokens`."""

    id: str
    group: str
    prompt: str
    gold: str
    """the right answer, as `rule` writes answers"""
    stop: tuple[str, ...]
    max_tokens: int
    rule: str
    """how the answer is taken from what was generated: a name in `extraction.RULES`"""


@dataclass(frozen=True)
class Task:
    """`form`: letter, cloze, perplexity or generated. `normalise`: answers are chosen by log-probability per
    character. All items are of one kind."""

    name: str
    form: str
    items: tuple[ChoiceItem, ...] | tuple[TextItem, ...] | tuple[GeneratedItem, ...]
    normalise: bool
    shots: int
    source: str

    def digest(self) -> str:
        """16 hexadecimal digits over everything the items say: the same for the same items only."""
        found = hashlib.sha256()
        for item in self.items:
            found.update(repr(item).encode("utf-8", "surrogatepass"))
        return found.hexdigest()[:16]
