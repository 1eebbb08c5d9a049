"""C-Eval (Huang et al., 2023): 52 Chinese subjects in four categories; the validation questions have answers."""

from octavo.base.errors import UsageError
from octavo.evals.tasks.layouts import ceval, read_questions
from octavo.evals.tasks.places import DataSet, HubSet, rows_of
from octavo.evals.tasks.questions import Question
from octavo.evals.tasks.subjects import chosen_subjects

__all__ = ["CATEGORIES", "read_ceval"]

CATEGORIES: dict[str, tuple[str, ...]] = {
    "stem": (
        "advanced_mathematics", "college_chemistry", "college_physics", "college_programming",
        "computer_architecture", "computer_network", "discrete_mathematics", "electrical_engineer",
        "high_school_biology", "high_school_chemistry", "high_school_mathematics", "high_school_physics",
        "metrology_engineer", "middle_school_biology", "middle_school_chemistry", "middle_school_mathematics",
        "middle_school_physics", "operating_system", "probability_and_statistics", "veterinary_medicine",
    ),
    "social-science": (
        "business_administration", "college_economics", "education_science", "high_school_geography",
        "high_school_politics", "mao_zedong_thought", "marxism", "middle_school_geography",
        "middle_school_politics", "teacher_qualification",
    ),
    "humanities": (
        "art_studies", "chinese_language_and_literature", "high_school_chinese", "high_school_history",
        "ideological_and_moral_cultivation", "law", "legal_professional", "logic", "middle_school_history",
        "modern_chinese_history", "professional_tour_guide",
    ),
    "other": (
        "accountant", "basic_medicine", "civil_servant", "clinical_medicine",
        "environmental_impact_assessment_engineer", "fire_engineer", "physician", "plant_protection",
        "sports_science", "tax_accountant", "urban_and_rural_planner",
    ),
}  # fmt: skip
"""the authors' subject_mapping.json"""

_CEVAL = DataSet("ceval", "ceval", HubSet("ceval/ceval-exam", "", "val", "dev"), per_subject=True)


def read_ceval(group: str, data: str | None, split: str) -> tuple[list[Question], str]:
    """The questions of some subjects, and where they are from. Raises UsageError."""
    wanted = chosen_subjects("ceval", CATEGORIES, group)
    source, rows = rows_of(_CEVAL, data, split, wanted)
    found = [one for one in read_questions(rows, "ceval", ceval, source) if one.group in wanted]
    missing = set(wanted) - {one.group for one in found}
    if missing:
        raise UsageError(
            f"{source}: no {split} questions of {', '.join(sorted(missing)[:5])}", hint="give another --data"
        )
    return found, source
