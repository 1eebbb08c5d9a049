"""Two result files: flips recounted by hand, and files that are no good."""

import gzip
import json
import random
from pathlib import Path

import pytest

from octavo.base.errors import UsageError
from octavo.cli import main
from octavo.evals.compare import compare, read_results, score_of

GOLD = "ABCDABCDAB"
FIRST, SECOND = "ABCDDDDDAA", "ABCAABBDAB"
"""the first is right at 0-3, 7, 8; the second at 0-2, 4, 5, 7-9: gained 4, 5, 9; lost 3; other wrong answer at 6"""


def write(file: Path, answers: str, **changes) -> Path:
    rows = [
        {"id": f"t/{n}", "answer": got, "correct": got == gold, "logprobs": dict.fromkeys("ABCD", -1.0)}
        | ({"kl": 0.1 * n} if answers == SECOND else {})
        for n, (got, gold) in enumerate(zip(answers, GOLD, strict=True))
    ]
    rows[2] |= changes
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def test_flips(tmp_path):
    a, b = read_results(write(tmp_path / "a.jsonl", FIRST)), read_results(write(tmp_path / "b.jsonl.gz", SECOND))
    found = compare(a, b, ("a", "b"))
    assert (found.gained, found.lost, found.changed_wrong, found.changed) == (3, 1, 1, 5)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 4) / 16)
    assert found.difference == pytest.approx(20.0)
    assert found.ci95[0] < 20 < found.ci95[1]
    assert not found.equivalent and "not shown" in found.verdict
    assert (found.distance.kl_mean, found.distance.same_top) == (pytest.approx(0.45), None)
    assert score_of(a).accuracy == 0.6 and score_of(a).answers == {"D": 5, "A": 3, "B": 1, "C": 1}


@pytest.mark.parametrize("seed", range(5))
def test_flips_counted_from_the_text_of_the_files(tmp_path, seed):
    """By code that shares nothing with ours: answers cut out of the lines as text, tallied in a table of strings."""
    draw = random.Random(seed)
    gold = "".join(draw.choice("ABCD") for _ in range(200))
    answers = [
        "".join(right if draw.random() < 0.6 else draw.choice("ABCD") for right in gold),
        "".join(draw.choice("ABCD") for _ in gold),
    ]
    for name, given in zip("ab", answers, strict=True):
        rows = [
            {"id": f"q{n}", "answer": got, "correct": got == right}
            for n, (got, right) in enumerate(zip(given, gold, strict=True))
        ]
        draw.shuffle(rows)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(read_results(tmp_path / "a"), read_results(tmp_path / "b"), ("a", "b"))

    tally: dict[str, int] = {}
    sides = []
    for name in "ab":
        cut = (line.split('"') for line in (tmp_path / name).read_text().splitlines())
        sides.append({words[3]: words[7] for words in cut})
    for key, right in ((f"q{n}", right) for n, right in enumerate(gold)):
        one, two = sides[0][key], sides[1][key]
        kind = f"{'R' if one == right else 'W'}{'R' if two == right else 'W'}{'=' if one == two else '!'}"
        tally[kind] = tally.get(kind, 0) + 1
    assert sum(tally.values()) == found.n == 200 and tally.keys() <= {"RR=", "RW!", "WR!", "WW=", "WW!"}
    assert (found.lost, found.gained, found.changed_wrong) == (tally["RW!"], tally["WR!"], tally["WW!"])
    assert found.changed == sum(one != two for one, two in zip(*answers, strict=True))
    assert found.difference == pytest.approx((tally["WR!"] - tally["RW!"]) / 2)


def test_distances_of_another_baseline_are_not_shown(tmp_path):
    """int4 beside int8: what int4's file says is beside bf16."""
    b = read_results(write(tmp_path / "b.jsonl", SECOND))
    found = compare(b, b, ("int8", "int4")).as_dict()
    assert found["kl_mean"] is found["kl_p99"] is found["same_top"] is None
    assert found["kl_tokens"] == 0


def test_a_run_beside_itself_is_equivalent_once_there_are_enough_items():
    rows = {f"{n}": {"id": f"{n}", "answer": "A", "correct": n % 3 == 0} for n in range(3000)}
    found = compare(rows, rows, ("a", "b"))
    assert (found.changed, found.mcnemar_p, found.difference) == (0, 1.0, 0.0)
    assert found.equivalent and found.drop_at_most < 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "t/1"}, "line 3: the item t/1 is there twice"),
        ({"answer": None}, "line 3: `answer` is None"),
        ({"correct": 1}, "line 3: `correct` is 1"),
        ({"answer": "E"}, "line 3: the answer 'E' is none of its options"),
        ({"logprobs": {"C": float("nan")}}, "line 3: log-probabilities that are no numbers"),
    ],
)
def test_rows_that_cannot_be(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        read_results(write(tmp_path / "bad.jsonl", FIRST, **changes))


def test_files_that_cannot_be(tmp_path):
    whole = write(tmp_path / "a.jsonl", FIRST)
    (tmp_path / "half.jsonl").write_bytes(whole.read_bytes()[:-20])
    for name, text, said in (
        ("half.jsonl", None, "line 10"),
        ("none.jsonl", "", "no items"),
        ("list.jsonl", "[]\n", "object"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=said):
            read_results(tmp_path / name)


def test_other_items_are_refused(tmp_path):
    a, b = read_results(write(tmp_path / "a.jsonl", FIRST)), read_results(write(tmp_path / "b.jsonl", SECOND, id="t/x"))
    with pytest.raises(UsageError, match=r"1 only in a \(t/2\), 1 only in b \(t/x\)"):
        compare(a, b, ("a", "b"))


def test_the_verb(tmp_path, capsys):
    a, b = str(write(tmp_path / "a.jsonl", FIRST)), str(write(tmp_path / "b.jsonl", SECOND))
    assert main(["compare", a, b, "--json", str(tmp_path / "c.json")]) == 0
    assert "3 gained, 1 lost, 1 from one wrong to another" in " ".join(capsys.readouterr().out.split())
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["scores"][a]["accuracy"] == 0.6 and data["pairs"][0]["gained"] == 3
    assert main(["compare", a, b, "--require"]) == 1
    assert main(["compare", a, str(tmp_path / "no.jsonl")]) == 2
