"""Request sets, what is reported of them, and the union of kernel intervals: arithmetic that results rest on."""

import numpy as np
import pytest

from benchmarks.load import Job, at_rate, prompts, random_jobs, read_trace, that_fit
from benchmarks.profiling import busy_seconds
from benchmarks.serving_report import Record, summary


def test_a_random_set_is_the_same_every_time_and_reaches_both_ends():
    jobs = random_jobs(300, (256, 2048), (64, 512), 7)
    assert jobs == random_jobs(300, (256, 2048), (64, 512), 7)
    small = random_jobs(300, (2, 4), (1, 2), 7)
    assert {job.prompt_tokens for job in small} == {2, 3, 4} and {job.output_tokens for job in small} == {1, 2}
    lengths = [job.prompt_tokens for job in jobs]
    assert lengths == np.random.default_rng(7).integers(256, 2048, 300, endpoint=True).tolist()
    contents = prompts(jobs, 320, 7)
    assert [len(tokens) for tokens in contents] == lengths
    assert len({tuple(tokens[:64]) for tokens in contents}) == 300  # nothing for the prefix cache to share


def test_poisson_arrivals_come_at_their_rate():
    arrivals = [job.arrival for job in at_rate([Job(1, 1)] * 4000, 8.0, 7)]
    assert arrivals == sorted(arrivals) and arrivals[-1] == pytest.approx(500, rel=0.1)


def test_traces_of_both_kinds(tmp_path):
    table, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    table.write_bytes((head + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.6805900,396,0\r\n").encode())
    lines.write_text('{"timestamp": 1000, "input_length": 9, "output_length": 3}\n' * 2)
    first, second = read_trace(table, 10, scale=2)
    assert first == Job(374, 44, 0.0)
    assert (second.prompt_tokens, second.output_tokens) == (396, 1) and second.arrival == pytest.approx(2.0)
    assert read_trace(lines, 1) == [Job(9, 3, 0.0)]
    assert that_fit([first, second], 400) == [second]


def test_a_summary_of_two_requests_one_unfinished():
    ended = Record(Job(10, 3, 1.0), 1.0, [2.0, 2.5, 3.5], 3.5)
    found = summary([ended, Record(Job(20, 5), 0.0, [4.0])], 4.0)
    assert (found["completed"], found["failed"]) == (1, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 4)
    assert found["output_throughput"] == 1.0 and found["total_token_throughput"] == 8.5
    assert found["mean_ttft_ms"] == 2500 and found["mean_tpot_ms"] == 750 and found["mean_e2el_ms"] == 2500
    assert found["p99_itl_ms"] == 1000
    assert summary([Record(Job(1, 1))], 1.0)["median_ttft_ms"] is None


def test_overlapping_kernels_are_busy_once():
    assert busy_seconds([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.8)]) == 4.0
    assert busy_seconds([]) == 0.0
