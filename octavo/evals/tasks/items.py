"""What a task is made of: items with options, and running text. Pure: no torch."""

from dataclasses import dataclass

__all__ = ["ChoiceItem", "Task", "TextItem"]


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
class Task:
    """`form`: letter, cloze or perplexity. `normalise`: answers are chosen by log-probability per character."""

    name: str
    form: str
    items: tuple[ChoiceItem, ...] | tuple[TextItem, ...]
    normalise: bool
    shots: int
    source: str
