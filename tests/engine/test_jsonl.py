"""A JSONL file in, a JSONL file out: every line answered once, wrong ones named by number, any interruption resumed."""

import json

import pytest

from octavo.base.errors import UsageError
from octavo.engine.jsonl import JobResult, open_job, run_job
from octavo.engine.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


def write(path, *lines) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(llm, source, out, params=PARAMS) -> JobResult:
    job = open_job(source, str(out), params)
    return run_job(llm, job) if job.todo else job.nothing_to_do()


def test_good_lines_are_answered_and_bad_ones_named(tiny, tmp_path):
    source = write(
        tmp_path / "in.jsonl",
        {"prompt_token_ids": [5, 6, 7], "id": "first"},
        "this is not JSON",
        "",
        {"prompt_token_ids": [5, 999]},
        {"prompt_token_ids": [8], "max_tokens": 2},
        {"prompt_token_ids": [8], "temperature": -1},
        {"prompt_token_ids": "text"},
        {"text": "no prompt"},
        {"prompt_token_ids": [8], "tempreature": 0.5},
        [1, 2],
    )
    out = tmp_path / "out.jsonl"
    result = run(tiny, source, out)
    assert result == JobResult(lines=9, answered=2, kept=0, failed=7)
    records = {record["line"]: record for record in read(out)}
    assert records[1]["id"] == "first"
    assert records[1]["token_ids"] == tiny.generate([[5, 6, 7]], PARAMS)[0].token_ids
    assert len(records[5]["token_ids"]) == 2
    for number, words in ((2, "line 2: not JSON"), (4, "999"), (6, "temperature"), (9, "tempreature"), (10, "line 10")):
        assert words in records[number]["error"]


def test_a_second_run_answers_only_what_is_missing(tiny, tmp_path):
    lines = [{"prompt_token_ids": [5, n]} for n in range(6, 12)]
    source, out = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    assert run(tiny, source, out).answered == 6
    whole = read(out)
    # killed in the middle of the fourth line
    text = "".join(json.dumps(record) + "\n" for record in whole[:3]) + json.dumps(whole[3])[:20]
    out.write_text(text)
    assert run(tiny, source, out) == JobResult(lines=6, answered=3, kept=3, failed=0)
    assert sorted(read(out), key=lambda r: r["line"]) == sorted(whole, key=lambda r: r["line"])
    assert run(tiny, source, out) == JobResult(lines=6, answered=0, kept=6, failed=0)


def test_a_mended_line_is_asked_again_and_so_is_one_with_other_flags(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", {"prompt_token_ids": [5]}, "oops"), tmp_path / "out.jsonl"
    assert run(tiny, source, out).failed == 1
    write(tmp_path / "in.jsonl", {"prompt_token_ids": [5]}, {"prompt_token_ids": [6]})
    assert run(tiny, source, out) == JobResult(lines=2, answered=1, kept=1, failed=0)
    other = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    assert run(tiny, source, out, other) == JobResult(lines=2, answered=2, kept=0, failed=0)


def test_interruption_keeps_what_is_answered_and_frees_the_pages(tiny, tmp_path):
    llm = tiny.with_cache(max_num_seqs=2)
    source = write(tmp_path / "in.jsonl", *({"prompt_token_ids": [5, n]} for n in range(3, 15)))
    out = tmp_path / "out.jsonl"
    job = open_job(source, str(out), PARAMS)
    step, calls = llm.engine.step, 0

    def interrupted():
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return step()

    llm.engine.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_job(llm, job)
    assert llm.engine.pages.held == 0
    llm.engine.step = step
    kept = len(read(out))
    assert 0 < kept < 12
    assert run(llm, source, out) == JobResult(lines=12, answered=12 - kept, kept=kept, failed=0)


def test_a_full_disk_is_said_and_loses_nothing(tiny, tmp_path):
    source = write(tmp_path / "in.jsonl", {"prompt_token_ids": [5]})
    job = open_job(source, "/dev/full", PARAMS)
    with pytest.raises(UsageError, match="No space left"):
        run_job(tiny, job)
    assert tiny.engine.pages.held == 0


def test_files_that_cannot_be(tmp_path):
    source = write(tmp_path / "in.jsonl", {"prompt": "x"})
    with pytest.raises(UsageError, match="cannot read"):
        open_job(str(tmp_path / "nowhere.jsonl"), str(tmp_path / "out.jsonl"), PARAMS)
    with pytest.raises(UsageError, match="no lines"):
        open_job(write(tmp_path / "empty.jsonl"), str(tmp_path / "out.jsonl"), PARAMS)
    with pytest.raises(UsageError, match="same file"):
        open_job(source, source, PARAMS)
    foreign = write(tmp_path / "foreign.jsonl", {"answer": 42})
    with pytest.raises(UsageError, match="line 1 is not an answer"):
        open_job(source, foreign, PARAMS)
