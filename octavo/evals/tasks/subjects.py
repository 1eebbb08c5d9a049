"""What stands behind the colon of `mmlu:social-sciences`: categories and subjects."""

from collections.abc import Mapping

from octavo.base.errors import UsageError

__all__ = ["chosen_subjects"]


def chosen_subjects(task: str, categories: Mapping[str, tuple[str, ...]], group: str) -> tuple[str, ...]:
    """A category, a subject, or several with commas; all where `group` is empty. Raises UsageError."""
    everything = sorted(subject for subjects in categories.values() for subject in subjects)
    chosen: list[str] = []
    for name in filter(None, (part.strip().lower() for part in group.split(","))):
        key, subject = name.replace("_", "-").replace(" ", "-"), name.replace("-", "_").replace(" ", "_")
        if key in categories:
            chosen += categories[key]
        elif subject in everything:
            chosen.append(subject)
        else:
            raise UsageError(f"{task}: no category or subject `{name}`", hint=f"categories: {', '.join(categories)}")
    return tuple(dict.fromkeys(chosen)) or tuple(everything)
