"""A tokenizer that begins every text with BOS: one of it in every sequence that is run, also with examples."""

import json

from octavo.evals.generations import prompts_of
from octavo.evals.sequences import choice_sequences
from octavo.evals.tasks import open_task

BOS = 1


class Letters:
    def encode(self, text: str) -> list[int]:
        return [BOS, *(ord(letter) for letter in text)]


def test_bos_once(tmp_path):
    rows = [{"question": f"Q{n}?", "choices": ["yes", "no"], "answer": 0} for n in range(3)]
    for name, some in (("t.jsonl", rows[:1]), ("d.jsonl", rows[1:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    for form in ("letter", "cloze"):
        [item] = open_task(
            str(tmp_path / "t.jsonl"), form=form, examples=str(tmp_path / "d.jsonl"), shots=2
        ).items  # fmt: skip
        for one in choice_sequences(Letters(), item, 1000):
            assert one.tokens[0] == BOS and one.tokens.count(BOS) == 1
            assert BOS not in [token for pairs in one.targets for _, token in pairs]
            assert one.first == len(item.context)  # the row that says what follows the context and its BOS
    for _, ids in prompts_of(Letters(), open_task("needles:100", limit=2).items, 1000):
        assert ids[0] == BOS and ids.count(BOS) == 1
