"""Rows of each data set's own layout, and rows that are wrong."""

import gzip
import json

import pytest

from octavo.base.errors import UsageError
from octavo.evals.tasks import open_task


def put(file, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return str(file)


@pytest.mark.parametrize(
    "row",
    [
        {"context_options": ["A cup. Ann", "A cup. Bea"], "continuation": "drank it.", "gold": 1},
        {"sentence": "A cup. _ drank it.", "option1": "Ann", "option2": "Bea", "answer": "2"},
    ],
)
def test_winogrande_scores_what_comes_after(row, tmp_path):
    file = put(tmp_path / "x.jsonl", row, row | {"gold": 0, "answer": "1"})
    first, second = open_task("winogrande", data=file).items
    assert first.contexts == ("A cup. Ann", "A cup. Bea")
    assert (first.options, first.gold, second.gold) == ((" drank it.", " drank it."), 1, 0)


def test_winogrande_examples_show_the_right_option(tmp_path):
    dev = put(tmp_path / "d.jsonl", {"sentence": "_ won.", "option1": "Cy", "option2": "Di", "answer": "2"})
    row = {"sentence": "_ lost.", "option1": "Ed", "option2": "Flo", "answer": "1"}
    [item] = open_task("winogrande", data=put(tmp_path / "t.jsonl", row), examples=dev, shots=1).items
    assert item.contexts == ("Di won.\n\nEd", "Di won.\n\nFlo")


def test_truthfulqa_has_as_many_options_as_it_likes(tmp_path):
    targets = {f"Answer {n}.": int(n == 4) for n in range(13)}
    split = {"choices": list(targets), "labels": list(targets.values())}
    file = put(tmp_path / "mc_task.jsonl.gz", *({"question": "Why?", "mc1_targets": one} for one in (targets, split)))
    for item in open_task("truthfulqa", data=str(tmp_path)).items:
        assert (len(item.options), item.labels[-1], item.gold) == (13, "M", 4)
    with pytest.raises(UsageError, match=r"form: `letter` \(the task truthfulqa has cloze\)"):
        open_task("truthfulqa", data=file, form="letter")


def test_truthfulqa_of_the_authors(tmp_path):
    text = 'Type,Question,Best Answer,Correct Answers,Incorrect Answers\nx,Why?,So,"So; Also so","No; ""Never""; No"\n'
    [item] = open_task("truthfulqa", data=put(tmp_path / "TruthfulQA.csv", text.rstrip())).items
    assert (item.options, item.gold) == ((" So", " No", ' "Never"'), 0)


def test_hellaswag_goes_on_with_the_text(tmp_path):
    row = {
        "activity_label": "Baking", "ctx_a": "A man stands. [header] Step", "ctx_b": "he mixes", "label": "1",
        "endings": ["salt [sub] there.", " flour.", "a", "b"],
    }  # fmt: skip
    [item] = open_task("hellaswag", data=put(tmp_path / "h.jsonl", row)).items
    assert item.context == "Baking: A man stands. Step He mixes"
    assert (item.options, item.gold) == ((" salt there.", " flour.", " a", " b"), 1)


def test_arc_has_labels_of_its_own(tmp_path):
    choices = {"text": ["2", "3", "1"], "label": ["1", "2", "3"]}
    row = {"id": "M_1", "question": "Which?", "choices": choices, "answerKey": "3"}
    [item] = open_task("arc-easy", data=put(tmp_path / "a.jsonl", row)).items
    assert (item.id, item.options, item.gold) == ("arc-easy/M_1", (" 2", " 3", " 1"), 2)


def test_piqa_of_both_makers(tmp_path):
    rows = ({"goal": "Sit?", "sol1": "on it", "sol2": "in it", "label": 1},
            {"query": "Question: Sit?\n", "choices": ["on it", "in it"], "gold": 1})  # fmt: skip
    one, two = open_task("piqa", data=put(tmp_path / "p.jsonl", *rows)).items
    assert (one.context, one.options, one.gold) == (two.context, two.options, two.gold)
    assert one.context == "Question: Sit?\nAnswer:"


def test_ceval_in_chinese_by_subject(tmp_path):
    fields = {"question": "问____。", "choices": ["甲", "乙", "丙", "丁"], "answer": "B"}
    rows = [{"subject": subject, "subject_zh": "法学", "id": 0} | fields for subject in ("law", "logic")]
    put(tmp_path / "ceval_val.jsonl", *rows)
    put(tmp_path / "ceval_dev.jsonl", *({**row, "question": "例"} for row in rows))
    [item] = open_task("ceval:law", data=str(tmp_path), shots=1).items
    assert item.context == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        "例\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案： B\n\n问____。\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    )
    assert (item.id, item.group, item.options[1], item.gold) == ("ceval/law/0", "law", " B", 1)
    with pytest.raises(UsageError, match="no test questions of art_studies, chinese_language_and_literature"):
        open_task("ceval:humanities", data=str(tmp_path))


def test_ceval_files_of_a_subject_each(tmp_path):
    for subject in ("law", "logic"):
        (tmp_path / f"{subject}_val.csv").write_text(
            "id,question,A,B,C,D,answer\n0,Q,None,NA,null,1,A\n1,R,a,b,c,d,D\n"
        )
    items = open_task("ceval:law,logic", data=str(tmp_path), form="cloze").items
    assert [item.id for item in items] == ["ceval/law/0", "ceval/law/1", "ceval/logic/0", "ceval/logic/1"]
    assert items[0].options == (" None", " NA", " null", " 1")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Q", "choices": ["a", None], "answer": 0}, "line 1: option B is None"),
        ({"question": "Q", "choices": ["a", "  "], "answer": 0}, "line 1: option B is '  '"),
        ({"question": "Q", "choices": "ab", "answer": 0}, "line 1: the options are 'ab', not a list"),
        ({"question": "Q", "A": "a", "B": "b", "C": "c", "answer": "A"}, "line 1: option D is None"),
        ({"question": "Q", "answer": 0}, "line 1: no options: none of choices, options"),
        ({"question": "Q", "choices": ["a", "b"]}, "line 1: none of answer, gold"),
        ({"question": "Q", "choices": ["a"], "answer": 0}, r"line 1: x/0: 1 options \(2 to 26\)"),
        ({"question": "Q", "choices": ["a", "b"], "answer": True}, "line 1: the answer `True` is none"),
        ({"question": "Q", "choices": ["a", "b"], "answer": -1}, "line 1: the answer `-1` is none"),
    ],
)
def test_rows_that_are_wrong_are_named(row, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        open_task(put(tmp_path / "x.jsonl", row))


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("winogrande", {"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}, "has no `_`"),
        ("winogrande", {"sentence": "_ x", "option1": "a", "option2": "b", "answer": ""}, "the answer `` is none"),
        ("truthfulqa", {"question": "Q", "mc1_targets": {"a": 1, "b": 1}}, "2 of 2 answers are marked"),
        ("truthfulqa", {"question": "Q", "mc1_targets": ["a"]}, "no mapping"),
        ("gsm8k", {"question": "Q", "answer": "7"}, "does not end with `#### NUMBER`"),
        ("gsm8k", {"question": "Q"}, "no `question` and `answer`"),
        ("longeval-lines", {"prompt": "Q", "expected_number": 3}, "`random_idx`"),
        ("ceval:law", {"question": "Q", "choices": ["a", "b"], "answer": 0}, "none of subject"),
    ],
)
def test_rows_of_a_task_that_are_wrong(task, row, said, tmp_path):
    with pytest.raises(UsageError, match=f"line 1: .*{said}|line 1.*{said}"):
        open_task(task, data=put(tmp_path / "x.jsonl", row))


def test_spaces_around_options_go(tmp_path):
    [item] = open_task(put(tmp_path / "x.jsonl", {"question": " Q? ", "choices": [" a", "b "], "answer": "b"})).items
    assert (item.context, item.options, item.gold) == ("Question: Q?\nAnswer:", (" a", " b"), 1)


def test_a_letter_is_a_letter_before_it_is_a_text(tmp_path):
    [item] = open_task(put(tmp_path / "x.jsonl", {"question": "Q", "choices": ["O", "AB", "B"], "answer": "B"})).items
    assert item.gold == 1
