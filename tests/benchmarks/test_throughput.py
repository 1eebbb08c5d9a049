"""The throughput benchmark's loop over a real engine with a made-up model."""

import pytest

from benchmarks.drive import profile, run_jobs
from benchmarks.load import Job
from benchmarks.made_up import made_up_weights
from octavo.engine.build import build_engine
from octavo.engine.options import EngineOptions


@pytest.fixture(scope="module")
def weights():
    return made_up_weights("tiny", "cpu", 256)


def make(weights, **options):
    asked = {"kv_cache_dtype": "int4", "kernels": "reference", "max_num_batched_tokens": 64, "max_num_seqs": 4}
    return build_engine(EngineOptions(model="tiny", **(asked | options)), weights)


def test_every_job_ends_with_its_tokens_and_preemptions_are_counted(weights):
    engine = make(weights, kv_cache_memory="192tok").engine
    jobs = [Job(50, 30), Job(40, 60, 0.01), Job(5, 60, 0.02)]
    records, run = run_jobs(engine, jobs, float("inf"))
    assert [len(record.tokens) for record in records] == [30, 60, 60]
    assert all(record.added >= record.job.arrival and record.ended == record.tokens[-1] for record in records)
    assert run["stopped"] is False and run["steps"] >= 60 and run["peak_running"] >= 2
    assert not engine.busy and engine.pages.held == 0


def test_a_run_out_of_time_is_stopped_and_says_so(weights):
    engine = make(weights, kv_cache_memory="256tok").engine
    records, run = run_jobs(engine, [Job(8, 8)], 0.0)
    assert run["stopped"] and run["steps"] == 0 and records[0].ended is None
    assert not engine.busy and engine.pages.held == 0


def test_the_key_balance_of_int4_is_made_from_the_weights(weights):
    assert "balance" in make(weights, kv_cache_memory="256tok").facts.plan


def test_decode_steps_are_profiled(weights):
    found = profile(make(weights, kv_cache_memory="1024tok").engine, 20, steps=2)
    assert found["batch"] == 4 and found["steps"] == 2 and found["step_ms"] > 0
    assert found["busy_share"] is None or 0 < found["busy_share"] <= 1
