"""Questions from files of every layout, and the two forms."""

import gzip
import json
import zipfile

import pytest

from octavo.base.errors import UnknownChoice, UsageError
from octavo.evals.tasks import open_task
from octavo.evals.tasks.mmlu import CATEGORIES, subjects_of


def test_all_of_mmlu_is_there():
    assert len(open_task("mmlu").items) == 14042
    social = open_task("mmlu:social-sciences")
    assert len(social.items) == 3077 and len({item.group for item in social.items}) == 12
    assert len({item.id for item in social.items}) == 3077
    assert {name: len(subjects) for name, subjects in CATEGORIES.items()} == {
        "stem": 18, "humanities": 13, "social-sciences": 12, "other": 14,
    }  # fmt: skip
    assert subjects_of("sociology, Moral Scenarios") == ("sociology", "moral_scenarios")
    with pytest.raises(UsageError, match="no category or subject `socks`"):
        subjects_of("socks")


def test_original_files_have_no_header_and_none_is_a_word(tmp_path):
    text = '"First, with a comma?",None,NA,3,4,A\nSecond?,a,b,c,d,D\n'
    dev = "Example?,e,f,g,h,B\n"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sociology_test.csv").write_text("\ufeff" + text)
    (tmp_path / "data" / "sociology_dev.csv").write_text(dev)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("data/test/sociology_test.csv", text)
        archive.writestr("data/dev/sociology_dev.csv", dev)
    for data in ("data", "all.zip"):
        task = open_task("mmlu:sociology", data=str(tmp_path / data), shots=1)
        first, second = task.items
        assert first.context == (
            "The following are multiple choice questions (with answers) about sociology.\n\n"
            "Example?\nA. e\nB. f\nC. g\nD. h\nAnswer: B\n\n"
            "First, with a comma?\nA. None\nB. NA\nC. 3\nD. 4\nAnswer:"
        )
        assert (first.options, first.gold, second.gold) == ((" A", " B", " C", " D"), 0, 3)
        cloze = open_task("mmlu:sociology", data=str(tmp_path / data), form="cloze").items[0]
        assert (cloze.context, cloze.options) == (
            "Question: First, with a comma?\nAnswer:",
            (" None", " NA", " 3", " 4"),
        )
        assert cloze.lengths == (4, 2, 1, 1)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q?", "choices": ["x", "y", "z"], "answer": "B"},
        {"query": "Q?", "choices": ["x", "y", "z"], "gold": 1},
        {"goal": "Q?", "options": ["x", "y", "z"], "label": "1"},
        {"question": "Q?", "options": ["x", "y", "z"], "answer": "y"},
    ],
)
def test_rows_of_ones_own(row, tmp_path):
    file = tmp_path / "mine.jsonl.gz"
    file.write_bytes(gzip.compress((json.dumps(row) + "\n\n").encode()))
    [item] = open_task(str(file)).items
    assert (item.context, item.options, item.gold) == ("Question: Q?\nAnswer:", (" x", " y", " z"), 1)


def test_a_header_row_is_no_question(tmp_path):
    (tmp_path / "virology_test.csv").write_text("question,A,B,C,D,answer\nQ?,a,b,c,d,B\n")
    [item] = open_task("mmlu:virology", data=str(tmp_path)).items
    assert (item.id, item.gold) == ("mmlu/virology/0", 1)
    (tmp_path / "virology_test.csv").write_text("Q?,a,b,c,d,E\n")
    with pytest.raises(UsageError, match="mmlu/virology/0: the answer is option 4 of 4"):
        open_task("mmlu:virology", data=str(tmp_path))
    (tmp_path / "virology_test.csv").write_text("Q?,a,B\n")
    with pytest.raises(UsageError, match=r"virology_test\.csv, line 1: 3 columns"):
        open_task("mmlu:virology", data=str(tmp_path))


def test_limits_draw_the_same_items():
    some = open_task("mmlu:sociology", limit=20, seed=3)
    assert [item.id for item in some.items] == [item.id for item in open_task("mmlu:sociology", limit=20, seed=3).items]
    assert [item.id for item in some.items] != [item.id for item in open_task("mmlu:sociology", limit=20, seed=4).items]
    whole = [item.id for item in open_task("mmlu:sociology").items]
    assert [whole.index(item.id) for item in some.items] == sorted(whole.index(item.id) for item in some.items)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1"),
        ("[1]", "line 1: not a JSON object"),
        ('{"choices": ["a", "b"], "answer": 0}', "line 1: none of question"),
        ('{"question": "Q", "choices": ["a"], "answer": 0}', "1 options"),
        ('{"question": "Q", "choices": ["a", "b"], "answer": "E"}', "is none of 2 options"),
        ('{"question": "Q", "choices": ["a", "b"], "answer": 2}', "is none of 2 options"),
    ],
)
def test_bad_rows_are_named(line, said, tmp_path):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match=said):
        open_task(str(tmp_path / "bad.jsonl"))


def test_what_is_not_there():
    with pytest.raises(UnknownChoice, match="unknown task: `mmul`"):
        open_task("mmul")
    with pytest.raises(UsageError, match="form: `letter`"):
        open_task("winogrande", form="letter")
