"""The report's page: well-formed, asks nobody for anything, takes names as text, and shows the numbers of its files."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_data import DEMO, EVALUATION, HOSTILE, MEMORY, PERPLEXITY, all_parts, named
from page_reader import check

from octavo.base.errors import UsageError
from octavo.cli import main
from octavo.evals.page import PageOptions, write_report
from octavo.evals.page.kinds import kind_of

PARTS = all_parts()
SUBSETS = [names for size in (1, 4) for names in itertools.combinations(PARTS, size)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_any_subset_makes_a_page(names, tmp_path):
    parts = {name: all_parts()[name] for name in names}
    page = check(write_report(parts, tmp_path / "new" / "folder"))
    data = json.loads((tmp_path / "new/folder/report.json").read_text())
    assert data["parts"] == parts
    assert page.source.count("<svg") == sum({"eval.json": 3, "text.json": 1, "memory.json": 1}.get(n, 0) for n in names)


def test_numbers_of_an_evaluation(tmp_path):
    page = check(write_report({"e": EVALUATION}, tmp_path))
    score, change, divergence = page.row("int4")
    assert score == ["32.50 %", "21.00 % to 51.00 %", "40", "A 30, B 10"]
    assert change == ["-2.50", "-7.12 to +4.57", "2", "3", "4", "9", "0.69", "6.54"]
    assert divergence == ["93.75 %", "0.012", "0.046", "1.9"]
    control = page.row("control (bf16 again)")
    assert control[0][:6] == ["+0.00", "-7.12 to +4.57", "0", "0", "0", "0"] and control[1][-1] == "–"
    assert page.text.count("verdict of int8") == 2  # in short, and in its section
    assert "It changed 0 answers of 40, so no change comes from batches or order." in page.text
    assert "A was 97.00 % of the answers to 150 questions" in page.text
    assert "octavo eval tiny --task trees" in page.text


def test_numbers_of_the_others(tmp_path):
    page = check(write_report({"m": MEMORY, "p": PERPLEXITY, "d": DEMO}, tmp_path))
    assert ["8", "133.0", "33.0"] in page.row("int8") and ["16", "166.0", "66.0"] in page.row("int8")
    assert ["100.0", "99.0", "4.12", "4.12", "0.2"] in page.row("int8")
    assert page.row("weights int4, KV bf16") == [["61.2", "8.00", "arithmetic"], ["KV int8", "10.0"]]
    assert ["32", "256.0", "31.5"] in page.row("bf16")
    assert ["12.3456", "11.5000 to 13.2500", "50.00 %", "9", "999"] in page.row("bf16")
    assert ["+1.23e-03", "-1.00e-03 to +3.40e-03"] in page.row("int8")
    assert page.row("bytes per token") == [["64", "34"]]
    assert page.row("Why?") == [["x" * 299 + "…", "So.", "50.00 %"]]
    assert "No control was run" in page.text


def test_names_are_text(tmp_path):
    parts = {f"{HOSTILE}{name}": named(data, HOSTILE) for name, data in all_parts().items()}
    options = PageOptions(title=HOSTILE, commands=(f"octavo {HOSTILE}",), environment={"platform": HOSTILE})
    page = check(write_report(parts, tmp_path, options))
    assert "</script><img src=x onerror=alert('1')>\"&$a_b$|`��" in page.text
    assert not re.search(r"[\x00-\x08\u202a-\u202e]", page.source)
    lines = (tmp_path / "report.md").read_text().splitlines()
    prose = [line for line in lines if not line.startswith("    ")]  # the rest is code, where nothing means anything
    assert len(lines) - len(prose) == 2
    assert any("\\<img" in line for line in prose)
    assert not any(re.search(r"(?<!\\)[<`]", line) for line in prose)


def test_markdown_says_the_same(tmp_path):
    write_report({"e": EVALUATION}, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| int4 | -2.50 | -7.12 to +4.57 | 2 | 3 | 4 | 9 | 0.69 | 6.54 |" in lines
    assert "- [x] **int8:** verdict of int8" in lines and "- [ ] **int4:** verdict of int4" in lines


# items that changed

GOLD, FIRST, SECOND = "ABCDABCDAB", "ABCDDDDDAA", "ABCAABBDAB"
"""gained 4, 5, 9; lost 3; another wrong answer at 6"""


def results(folder: Path, name: str, answers: str, **more: Any) -> str:
    rows = [
        {"id": f"t/{n}", "answer": got, "correct": got == gold, "gold": gold, "margin": n / 8, **more}
        for n, (got, gold) in enumerate(zip(answers, GOLD, strict=True))
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def with_files(folder: Path, **counts: int) -> dict[str, Any]:
    files = {
        "bf16": results(folder, "bf16", FIRST, question="<b>Which?"),
        "int8": results(folder, "int8", SECOND, kl=0.75),
    }
    return {**EVALUATION, "pairs": [pair_of(**counts)], "files": files}


def pair_of(gained: int = 3, lost: int = 1, changed_wrong: int = 1) -> dict[str, Any]:
    return {**EVALUATION["pairs"][0], "gained": gained, "lost": lost, "changed_wrong": changed_wrong}


def test_changed_items_are_looked_up(tmp_path):
    page = check(write_report({"e": with_files(tmp_path)}, tmp_path / "out"))
    rows = [row for row in page.rows if row[0].startswith("t/")]
    assert [row[0] for row in rows] == ["t/9", "t/6", "t/5", "t/4", "t/3"]  # the surest first
    assert rows[0][1:] == ["int8", "gained", "B", "A", "1.1", "B", "1.1", "0.75", "<b>Which?"]
    assert [row[2] for row in rows] == ["gained", "another wrong answer", "gained", "gained", "lost"]
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert [item["id"] for item in data["items"]["e"]] == [row[0] for row in rows]


def test_items_from_another_folder(tmp_path):
    data = with_files(tmp_path)
    data["files"] = {name: f"/gone/{name}.jsonl" for name in data["files"]}
    assert "is not there any more" in check(write_report({"e": data}, tmp_path / "a")).text
    page = check(write_report({"e": data}, tmp_path / "b", PageOptions(items=tmp_path)))
    assert page.row("t/9")


def test_items_of_another_run_are_not_shown(tmp_path):
    page = check(write_report({"e": with_files(tmp_path, gained=2)}, tmp_path / "out"))
    assert "of another run than these scores" in page.text and not page.row("t/9")


# files that are no good


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "a list and not an object"),
        ({"a": 1}, "no file that the report knows (it has `a`)"),
        ({**EVALUATION, "pairs": [{"a": "x", "b": "y"}]}, "octavo eval, octavo compare, but `pairs`"),
        ({**EVALUATION, "scores": []}, "but `scores`"),
        ({**EVALUATION, "control": 3}, "but `control`"),
        ({**MEMORY, "rows": [{"batch": "8"}]}, "octavo memory, but `rows`"),
        ({**MEMORY, "law": {"int8": {"slope_mib": float("nan"), "intercept_mib": 1}}}, "but `law`"),
        ({**DEMO, "answers": [1]}, "octavo demo, but `answers`"),
    ],
)
def test_files_that_no_verb_wrote(data, said):
    with pytest.raises(UsageError) as error:
        kind_of(data, "x.json")
    assert said in error.value.message and error.value.message.startswith("x.json: ") and error.value.hint


def test_what_stands_alone_is_enough():
    assert kind_of({"scores": {}, "pairs": []}, "x") == "eval"
    assert kind_of({"model": "m", "tokens": 1, "rows": []}, "x") == "memory"


def test_nothing_is_written_of_a_bad_set(tmp_path):
    with pytest.raises(UsageError):
        write_report({"good": EVALUATION, "bad": {}}, tmp_path / "out")
    with pytest.raises(UsageError, match="nothing"):
        write_report({}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# the verb


def test_the_verb(tmp_path, capsys):
    files = []
    for name in ("eval.json", "memory.json"):
        files.append(str(tmp_path / name))
        Path(files[-1]).write_text(json.dumps(PARTS[name]))
    out = tmp_path / "out"
    words = ["report", *files, "--out", str(out), "--title", "A test", "--command", "make x", "--command", "make y"]
    assert main([*words, "--json", str(tmp_path / "r.json")]) == 0
    assert str(out / "report.html") in capsys.readouterr().out.replace("\n", "")
    page = check(out / "report.html")
    assert "A test" in page.text and "make x\nmake y" in page.text and "torch" in page.text
    assert json.loads((tmp_path / "r.json").read_text())["parts"] == {"eval.json": "eval", "memory.json": "memory"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ('{"a": NaN}', "NaN is no number"), ("[" * 100_000, "is not JSON"), ("{}", "no keys")],
    ids=["half", "nan", "deep", "empty"],
)
def test_wrong_files(text, said, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    assert main(["report", str(tmp_path / "x.json"), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wrong_words(tmp_path, capsys):
    assert main(["report"]) == 2
    assert "no files to report on" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "e.json").write_text(json.dumps(EVALUATION))
    assert main(["report", str(tmp_path / "e.json"), "--out", str(tmp_path / "e.json")]) == 2
    assert "cannot write into" in capsys.readouterr().err
