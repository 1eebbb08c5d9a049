"""Prompts that are answered in words: what they say, and what the right answer is."""

import json

import pytest

from octavo.base.errors import RequestError, UsageError
from octavo.evals.generations import prompts_of
from octavo.evals.tasks import open_task
from octavo.evals.tasks.needles import DEPTHS


def problem(number: int, answer: str) -> str:
    return (
        json.dumps({"question": f"How many, {number}?", "answer": f"It is <<1+1={answer}>>{answer}.\n#### {answer}"})
        + "\n"
    )


def test_gsm8k_with_worked_examples(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text(problem(1, "1,000") + problem(2, "-7"))
    (tmp_path / "gsm8k_train_first2.jsonl").write_text(problem(3, "3") + problem(4, "4"))
    task = open_task("gsm8k", data=str(tmp_path), shots=1)
    first, second = task.items
    assert first.prompt == (
        "Question: How many, 3?\nAnswer: It is <<1+1=3>>3.\n#### 3\n\nQuestion: How many, 1?\nAnswer:"
    )
    assert (first.id, first.gold, second.gold, first.stop, task.form) == (
        "gsm8k/0",
        "1000",
        "-7",
        ("Question:",),
        "generated",
    )
    own = open_task("gsm8k", data=str(tmp_path / "gsm8k_test.jsonl"), shots=2,
                    examples=str(tmp_path / "gsm8k_train_first2.jsonl"))  # fmt: skip
    assert own.items[0].prompt.count("Question:") == 3
    with pytest.raises(UsageError, match=r"form: `cloze` \(the task gsm8k has generated\)"):
        open_task("gsm8k", data=str(tmp_path), form="cloze")


def lines_file(folder, lines: int) -> None:
    row = {
        "random_idx": ["red-fox", 1],
        "expected_number": 10 * lines,
        "num_lines": lines,
        "prompt": "A record. Which? ",
    }
    (folder / f"{lines}_lines.jsonl").write_text(json.dumps(row) + "\n")


def test_longeval_by_length(tmp_path):
    for lines in (900, 200):
        lines_file(tmp_path, lines)
    both = open_task("longeval-lines", data=str(tmp_path)).items
    assert [(item.group, item.gold) for item in both] == [("200 lines", "2000"), ("900 lines", "9000")]
    assert both[0].prompt == "A record. Which?\nAnswer: The <REGISTER_CONTENT> in line red-fox is"
    [one] = open_task("longeval-lines:900", data=str(tmp_path)).items
    assert one == both[1]
    with pytest.raises(UsageError, match=r"has no 400_lines file \(have 200, 900\)"):
        open_task("longeval-lines:400", data=str(tmp_path))


def test_needles_are_at_their_depths_and_once(tmp_path):
    sentences = "".join(f"Sentence {n} of the hay. " for n in range(400))
    (tmp_path / "hay.txt").write_text(sentences)
    task = open_task("needles:1000", data=str(tmp_path / "hay.txt"))
    assert len(task.items) == 10 * len(DEPTHS) == len({item.id for item in task.items})
    for item in task.items:
        hay, _, question = item.prompt.partition("\n\nQuestion:")
        assert hay.count(item.gold) == 1 and item.gold not in question and 3900 < len(hay) < 4100
        depth = 100 * hay.index("The secret number") / (len(hay) - 40)
        assert abs(depth - int(item.group.removesuffix(" %"))) < 3
        assert item.prompt.endswith(" is")
    assert open_task("needles:1000", data=str(tmp_path / "hay.txt"), seed=9).items == task.items


def test_needles_in_the_text_of_the_package():
    assert len(open_task("needles:4000", limit=12).items) == 12
    with pytest.raises(UsageError, match=r"needles:30000 needs about 120,000 characters of text, and bundled has"):
        open_task("needles:30000")
    for name in ("needles:99", "needles:many", "needles:-5"):
        with pytest.raises(UsageError, match="is no length"):
            open_task(name)


class Words:
    def encode(self, text: str) -> list[int]:
        return [1, *(len(word) for word in text.split())]


def test_what_does_not_fit_is_refused_before_anything_runs():
    items = open_task("needles:1000", limit=3).items
    longest = max(len(Words().encode(item.prompt)) for item in items) + items[0].max_tokens
    assert len(prompts_of(Words(), items, longest)) == 3
    with pytest.raises(
        RequestError, match=rf"needles/1000/.* tokens and 24 for its answer, and the model takes {longest - 1}"
    ):
        prompts_of(Words(), items, longest - 1)


def test_items_have_a_digest_of_what_they_say(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text(problem(1, "1"))
    before = open_task("gsm8k", data=str(tmp_path)).digest()
    assert before == open_task("gsm8k", data=str(tmp_path)).digest()
    (tmp_path / "gsm8k_test.jsonl").write_text(problem(1, "2"))
    assert before != open_task("gsm8k", data=str(tmp_path)).digest()
