"""A task through one model with several caches: scores as transformers gives them, files that can be taken up again."""

import json
from pathlib import Path

import pytest
import torch

from octavo.base.errors import RequestError, UsageError
from octavo.cli import main
from octavo.evals.run_eval import EvalOptions, report_of, run_eval

ENGINE = {"dtype": "float32", "kv_cache_memory": "8192tok", "kv_self_test": "off"}
WORDS = "ash birch cedar elm fir oak pine yew".split()


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("task") / "trees.jsonl"
    rows = [
        {
            "id": n,
            "question": f"Tree number {n}?",
            "choices": [WORDS[n % 8], WORDS[(n + 3) % 8], WORDS[(n + 5) % 8]],
            "answer": n % 3,
        }
        for n in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(model: str, task: str, out: Path, **changes):
    options = {"dtypes": ("fp32", "int4"), "wave": 5, "engine": ENGINE} | changes
    return run_eval(EvalOptions(model=model, task=task, out=str(out), **options), lambda *step: None)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["cloze", "letter"])
def test_scores_are_those_of_transformers(readable, checkpoint, questions, tmp_path, form):
    from octavo import LLM
    from octavo.evals.tasks import open_task

    _, theirs = checkpoint("llama")
    found = run(readable, questions, tmp_path, form=form)
    tokenizer = LLM(readable, **ENGINE).tokenizer
    for row, item in zip(rows_of(found.files["fp32"]), open_task(questions, form=form).items, strict=True):
        for label, option in zip(item.labels, item.options, strict=True):
            start, whole = len(tokenizer.encode(item.context)), tokenizer.encode(item.context + option)
            with torch.no_grad():
                logits = theirs(torch.tensor([whole])).logits[0].log_softmax(-1)
            want = sum(float(logits[at - 1, whole[at]]) for at in range(start, len(whole)))
            assert row["logprobs"][label] == pytest.approx(want, abs=1e-3)
        weigh = item.lengths if form == "cloze" else (1, 1, 1)
        best = max(range(3), key=lambda o: row["logprobs"]["ABC"[o]] / weigh[o])
        assert row["answer"] == "ABC"[best] and row["correct"] == (best == item.gold)


def test_the_control_changes_nothing_and_the_report_says_so(readable, questions, tmp_path):
    report = report_of(run(readable, questions, tmp_path), margin=1.0)
    data = report.as_dict()
    assert set(data["scores"]) == {"fp32", "int4"} and data["scores"]["int4"]["n"] == 12
    assert [pair["b"] for pair in data["pairs"]] == ["int4"]
    control = data["control"]
    assert control["gained"] + control["lost"] + control["changed_wrong"] == 0
    assert control["kl_mean"] < 1e-9 < data["pairs"][0]["kl_mean"]


def test_a_run_goes_on_where_it_was(readable, questions, tmp_path):
    whole = run(readable, questions, tmp_path / "whole")
    cut = run(readable, questions, tmp_path / "cut")
    want = {name: path.read_text() for name, path in whole.files.items()}
    for path in cut.files.values():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:5]) + lines[5][:20])
    again = run(readable, questions, tmp_path / "cut")
    ids = [f"trees/{n}" for n in range(12)]
    for name, path in again.files.items():
        got, wanted = rows_of(path), {row["id"]: row for row in map(json.loads, want[name].splitlines())}
        assert sorted(row["id"] for row in got) == sorted(ids)
        assert all(row["answer"] == wanted[row["id"]]["answer"] for row in got)
    with pytest.raises(UsageError, match="is of another run: form was"):
        run(readable, questions, tmp_path / "cut", form="letter")
    run(readable, questions, tmp_path / "cut", form="letter", resume=False)


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sums")
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(9)]
    for name, some in (("gsm8k_test.jsonl", rows[:7]), ("gsm8k_train.jsonl", rows[7:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(folder)


@pytest.fixture
def short(monkeypatch):
    """Answers of GSM8K in few tokens."""
    monkeypatch.setattr("octavo.evals.tasks.problems._GSM8K_TOKENS", 20)


def test_generated_answers(readable, sums, short, tmp_path):
    from octavo import LLM, SamplingParams
    from octavo.evals.tasks import open_task
    from octavo.evals.tasks.extraction import RULES

    found = run(readable, "gsm8k", tmp_path, data=sums, shots=2)
    items = open_task("gsm8k", data=sums, shots=2).items
    llm = LLM(readable, kv_cache_dtype="int4", **ENGINE)
    alone = [llm.generate(i.prompt, SamplingParams(temperature=0, max_tokens=20, stop=i.stop))[0].text for i in items]
    rows = rows_of(found.files["int4"])
    assert [row["output"] for row in rows] == alone and len(rows) == 7
    for row, item in zip(rows, items, strict=True):
        assert (row["id"], row["gold"], row["answer"]) == (item.id, item.gold, RULES[item.rule](row["output"]))
        assert row["correct"] == (row["answer"] == item.gold)
    same = {row["id"]: row for row in rows_of(found.files["control"])}
    assert same == {row["id"]: row for row in rows_of(found.files["fp32"])}
    report = report_of(found, 1.0).as_dict()
    assert report["form"] == "generated" and report["scores"]["int4"]["n"] == 7
    assert report["control"]["changed_wrong"] == 0 and report["pairs"][0]["kl_mean"] is None


def test_generated_answers_go_on_where_they_were(readable, sums, short, tmp_path):
    whole = run(readable, "gsm8k", tmp_path, data=sums)
    want = {name: path.read_text().splitlines(keepends=True) for name, path in whole.files.items()}
    for name, path in whole.files.items():
        path.write_text("".join(want[name][:3]) + want[name][3][:15])
    again = run(readable, "gsm8k", tmp_path, data=sums)
    for name, path in again.files.items():
        assert sorted(path.read_text().splitlines(keepends=True)) == sorted(want[name])
    with pytest.raises(UsageError, match="is of another run: shots was 0 and is 1"):
        run(readable, "gsm8k", tmp_path, data=sums, shots=1)
    file = Path(sums) / "gsm8k_test.jsonl"
    before = file.read_text()
    file.write_text(before.replace("What is 1", "What was 1"))
    with pytest.raises(UsageError, match="is of another run: items_digest was"):
        run(readable, "gsm8k", tmp_path, data=sums)
    file.write_text(before)


def test_what_does_not_fit_is_refused(readable, tmp_path):
    with pytest.raises(RequestError, match=r"needles/1000/0/0 has .* tokens and 24 for its answer"):
        run(readable, "needles:1000", tmp_path)


def test_options_of_one_text_after_two_contexts(readable, checkpoint, tmp_path):
    from octavo import LLM

    _, theirs = checkpoint("llama")
    row = {"sentence": "The cup and the box; the _ broke.", "option1": "cup", "option2": "box", "answer": "2"}
    (tmp_path / "w.jsonl").write_text(json.dumps(row) + "\n")
    found = run(readable, "winogrande", tmp_path, data=str(tmp_path / "w.jsonl"))
    [record] = rows_of(found.files["fp32"])
    tokenizer = LLM(readable, **ENGINE).tokenizer
    for label, option in (("A", "cup"), ("B", "box")):
        context = f"The cup and the box; the {option}"
        start, whole = len(tokenizer.encode(context)), tokenizer.encode(context + " broke.")
        with torch.no_grad():
            logits = theirs(torch.tensor([whole])).logits[0].log_softmax(-1)
        want = sum(float(logits[at - 1, whole[at]]) for at in range(start, len(whole)))
        assert record["logprobs"][label] == pytest.approx(want, abs=1e-3)


def test_perplexity(readable, checkpoint, tmp_path):
    _, theirs = checkpoint("llama")
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 30))
    found = run(readable, "text", tmp_path, data=str(tmp_path / "text.txt"), window=128)
    data = report_of(found, 1.0).as_dict()
    from octavo import LLM

    ids = LLM(readable, **ENGINE).tokenizer.encode(" ".join(WORDS * 30))
    total, count = 0.0, 0
    for begin in range(0, len(ids), 128):
        part = ids[begin : begin + 128]
        with torch.no_grad():
            logits = theirs(torch.tensor([part])).logits[0].log_softmax(-1)
        total -= float(logits[:-1].gather(1, torch.tensor(part[1:])[:, None]).sum())
        count += len(part) - 1
    assert data["scores"]["fp32"]["tokens"] == count
    assert data["scores"]["fp32"]["perplexity"] == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-4)
    assert data["pairs"][0]["kl_mean"] > 0 and data["control"]["kl_mean"] < 1e-9
    assert sum(bucket["tokens"] for bucket in data["pairs"][0]["kl_by_position"]) == count
    assert data["pairs"][0]["kl_by_position"][0]["tokens"] % 63 == 0  # of each window tokens 1 to 63


def test_the_help_knows_every_task(capsys):
    from octavo.evals.tasks import TASKS

    assert main(["eval", "--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in TASKS if name not in said] == [] and "--examples" in said


def test_the_verb(readable, questions, tmp_path, capsys):
    words = ["eval", readable, "--task", questions, "--kv-cache-dtype", "fp32,int8/int4", "--out", str(tmp_path)]
    words += ["--dtype", "float32", "--kv-self-test", "off", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    assert "int8,int4" in capsys.readouterr().out
    data = json.loads((tmp_path / "out.json").read_text())
    assert set(data["scores"]) == {"fp32", "int8,int4"}
    assert rows_of(Path(data["files"]["int8,int4"]))[0]["id"] == "trees/0"
