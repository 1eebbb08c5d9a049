"""Files, folders and the hub: which one is read, and what is said of those that cannot be."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from octavo.base.errors import UsageError
from octavo.evals.tasks import TASKS, open_task

ROW = {"question": "Q?", "choices": ["a", "b"], "answer": "B"}


def line(**changes) -> str:
    return json.dumps(ROW | changes) + "\n"


def test_a_folder_has_files_of_usual_names(tmp_path):
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "piqa_train.jsonl").write_text(line(question="shown"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "piqa_val.jsonl.gz").write_bytes(gzip.compress(line().encode()))
    [item] = open_task("piqa", data=str(tmp_path), shots=1).items
    assert item.context == "Question: shown\nAnswer: b\n\nQuestion: Q?\nAnswer:"
    with pytest.raises(UsageError, match=r"has no test questions of hellaswag: none of hellaswag_test, hellaswag_val"):
        open_task("hellaswag", data=str(tmp_path))


def test_several_files_are_not_guessed_at_but_parts_are_one(tmp_path):
    for part in range(2):
        (tmp_path / f"test-{part:05}-of-00002.jsonl").write_text(line(id=part))
    assert [item.id for item in open_task("piqa", data=str(tmp_path)).items] == ["piqa/0", "piqa/1"]
    (tmp_path / "piqa_val_a.jsonl").write_text(line())
    (tmp_path / "piqa_val_b.jsonl").write_text(line())
    with pytest.raises(UsageError, match=r"several files for piqa: piqa_val_a.jsonl, piqa_val_b.jsonl"):
        open_task("piqa", data=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "", "has no questions for a"),
        ("a.jsonl", "\n\n", "has no questions for a"),
        ("a.jsonl", line() + line()[:20], "line 2: "),
        ("a.jsonl", line(id=7) + "\n" + line(id=7), "line 3: the id a/7 is there twice"),
        ("a.json", "{}", "not a list of JSON objects"),
        ("a.json", "[", "a.json: "),
        ("a.csv", "Q?,a,b,c,d,A\nQ2?,a,b,c,d,B\n", "line 2: none of question, .*hint: a CSV file needs its header row"),
        ("a.csv", "question,A,B,C,D,answer\nQ,a,b,c\n", "line 2: not the 6 columns"),
        ("a.csv", "question,A,B,C,D,answer\nQ,a,b,c,d,A,more\n", "line 2: not the 6 columns"),
        ("a.csv", 'question,A,B,C,D,answer\n"Q,a,b,c,d,A\n', "line 2: unexpected end of data"),
        ("a.jsonl.gz", "not gzip", "line 1: Not a gzipped file"),
    ],
)
def test_files_that_cannot_be(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"(?s){said}"):
        open_task(str(tmp_path / name))


def test_a_gzip_that_was_cut_off(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line().encode() * 50)[:-12])
    with pytest.raises(UsageError, match="end-of-stream"):
        open_task(str(tmp_path / "a.jsonl.gz"))


def test_csv_and_json_arrays(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeffquestion,A,B,C,D,answer\n"Q,\nmore?",None,NA,,d,D\n'.replace(",,", ",nan,"))
    [item] = open_task(str(tmp_path / "a.csv")).items
    assert (item.context, item.options) == ("Question: Q,\nmore?\nAnswer:", (" None", " NA", " nan", " d"))
    (tmp_path / "a.json").write_text(json.dumps([ROW, ROW]))
    assert len(open_task(str(tmp_path / "a.json")).items) == 2


def test_parquet_by_a_library_that_comes_late(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs the package `pyarrow`"):
        open_task(str(file))
    batches = [SimpleNamespace(to_pylist=lambda: [ROW]), SimpleNamespace(to_pylist=lambda: [ROW | {"answer": 5}])]
    parquet = SimpleNamespace(ParquetFile=lambda path: SimpleNamespace(iter_batches=lambda batch_size: batches))
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(ArrowInvalid=ValueError, parquet=parquet))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    with pytest.raises(UsageError, match="row 2: the answer `5` is none of 2 options"):
        open_task(str(file))


@pytest.fixture
def hub(monkeypatch):
    """A hub that has what is put into it, by what its addresses contain; it notes what was asked for."""
    sets, asked = {}, []

    def load_dataset(reader, data_files, split, streaming):
        assert (reader in ("parquet", "json"), split, streaming) == (True, "train", True)
        asked.extend(data_files)
        for part, rows in sets.items():
            if part in data_files[0]:
                return iter(rows)
        raise ConnectionError("no way there")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return SimpleNamespace(sets=sets, asked=asked)


def test_the_hub(hub):
    choices = {"text": ["x", "y"], "label": ["A", "B"]}
    rows = [{"id": f"M{n}", "question": f"Q{n}", "choices": choices, "answerKey": "B"} for n in range(3)]
    hub.sets["ARC-Easy/test"], hub.sets["ARC-Easy/validation"] = rows, [rows[0] | {"question": "shown"}]
    task = open_task("arc-easy", shots=1)
    assert hub.asked == [
        f"hf://datasets/allenai/ai2_arc@refs/convert/parquet/ARC-Easy/{split}/0000.parquet"
        for split in ("test", "validation")
    ]
    assert (task.source, len(task.items), task.items[1].gold) == ("allenai/ai2_arc", 3, 1)
    assert task.items[1].context == "Question: shown\nAnswer: y\n\nQuestion: Q1\nAnswer:"


def test_the_hub_subject_by_subject(hub):
    row = {"id": 0, "question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "C", "explanation": ""}
    hub.sets["/law/val"] = hub.sets["/logic/val"] = [row]
    assert [item.id for item in open_task("ceval:law,logic").items] == ["ceval/law/0", "ceval/logic/0"]


def test_texts_of_the_hub_are_not_those_of_calibration(hub):
    hub.sets["wikitext-2-raw-v1/test"] = [{"text": ""}, {"text": " = A = \n"}, {"text": ""}]
    hub.sets["c4-validation"] = [{"text": f"document {n}"} for n in range(1002)]
    assert open_task("wikitext2").items[0].text == " \n = A = \n \n"
    text = open_task("c4").items[0].text
    assert text.startswith("document 0\n\ndocument 1\n\n") and text.endswith("document 999")


@pytest.mark.parametrize("name", ["piqa", "mmlu:sociology", "wikitext2", "gsm8k"])
def test_without_the_hub_it_says_what_to_do(name, hub, monkeypatch):
    shots = int(name.startswith("mmlu"))
    with pytest.raises(UsageError, match=r"(?s)cannot be read from the hub: ConnectionError: no way there.*--data"):
        open_task(name, shots=shots)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"(?s)the package `datasets`.*pip install"):
        open_task(name, shots=shots)


@pytest.mark.parametrize("name", TASKS)
def test_data_that_is_not_there(name, tmp_path):
    with pytest.raises(UsageError, match="nothing"):
        open_task(name, data=str(tmp_path / "nothing"))
