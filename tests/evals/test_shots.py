"""Examples before questions: which ones, and never the question itself."""

import json
import logging

import pytest

from octavo.base.errors import UsageError
from octavo.evals.tasks import open_task


def put(file, *texts, **changes):
    rows = [{"question": text, "choices": ["yes", "no"], "answer": 0} | changes for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def asked(item):
    return [part.partition("\n")[0].removeprefix("Question: ") for part in item.context.split("\n\n")]


def test_the_first_ones_are_taken(tmp_path):
    test, dev = put(tmp_path / "t.jsonl", "One?", "Two?"), put(tmp_path / "d.jsonl", "a", "b", "c")
    assert [asked(item) for item in open_task(test, examples=dev, shots=2).items] == [
        ["a", "b", "One?"],
        ["a", "b", "Two?"],
    ]
    assert open_task(test).items[0].context == "Question: One?\nAnswer:"


def test_a_question_is_not_its_own_example(tmp_path, caplog):
    test, dev = put(tmp_path / "t.jsonl", "One?", "Two?"), put(tmp_path / "d.jsonl", "one? ", "b", "c")
    with caplog.at_level(logging.WARNING, logger="octavo"):
        items = open_task(test, examples=dev, shots=2).items
    assert [asked(item) for item in items] == [["b", "c", "One?"], ["one?", "b", "Two?"]]
    assert "1 questions are among their own examples" in caplog.text
    same = open_task(test, examples=test, shots=2).items
    assert [asked(item) for item in same] == [["Two?", "One?"], ["One?", "Two?"]]


def test_examples_are_of_the_same_subject(tmp_path):
    (tmp_path / "mmlu").mkdir()
    for split, text in (("test", "T"), ("dev", "D")):
        rows = [
            {"subject": subject, "question": f"{text} {subject} {n}", "choices": ["w", "x", "y", "z"], "answer": "C"}
            for subject in ("sociology", "virology")
            for n in range(2)
        ]
        (tmp_path / "mmlu" / f"mmlu_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = open_task("mmlu:sociology,virology", data=str(tmp_path / "mmlu"), shots=2, form="cloze").items
    assert asked(items[3]) == ["D virology 0", "D virology 1", "T virology 1"]
    with pytest.raises(UsageError, match="3 shots, and there are 2 examples of sociology"):
        open_task("mmlu:sociology", data=str(tmp_path / "mmlu"), shots=3)
    from_package = open_task("mmlu:sociology", shots=2, examples=str(tmp_path / "mmlu"), form="cloze").items
    assert len(from_package) == 201 and asked(from_package[0])[:2] == ["D sociology 0", "D sociology 1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": 5}, "5 shots, and there are 1 examples"),
        ({"shots": -1}, r"shots: -1 \(0 to 64\)"),
        ({"shots": 65}, r"shots: 65 \(0 to 64\)"),
        ({"shots": 0}, "say how many with --shots"),
        ({"shots": 1, "examples": None}, "is a single file.*name their file with --examples"),
    ],
)
def test_what_cannot_be(changes, said, tmp_path):
    test, dev = put(tmp_path / "t.jsonl", "One?"), put(tmp_path / "d.jsonl", "a")
    with pytest.raises(UsageError, match=f"(?s){said}"):
        open_task(test, **({"examples": dev} | changes))


def test_tasks_that_take_none(tmp_path):
    for name in ("needles:500", "text", "longeval-lines"):
        with pytest.raises(UsageError, match="takes no examples"):
            open_task(name, shots=1, data=str(tmp_path))
