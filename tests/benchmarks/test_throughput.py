"""The throughput benchmark's loop over a real engine with a made-up model."""

import json

import pytest

from benchmarks.drive import profile, run_jobs
from benchmarks.load import Job
from benchmarks.made_up import made_up_weights
from benchmarks.recording import StepRecorder
from benchmarks.simulate import Costs, simulate
from octavo.base.errors import CapacityError
from octavo.engine.build import build_engine
from octavo.engine.options import EngineOptions
from octavo.engine.scheduler import SchedulerLimits


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


def test_a_run_is_recorded_step_by_step_and_simulated_alike(weights, tmp_path):
    """The simulation plans the very steps that ran, and takes what they took."""
    loaded = make(weights, kv_cache_memory="320tok")
    jobs = [Job(50, 30), Job(100, 60), Job(5, 60), Job(20, 40)]
    with StepRecorder(loaded.engine) as recorder:
        run_jobs(loaded.engine, jobs, float("inf"))
    recorder.write(tmp_path / "steps.json", pool_tokens=320)
    found = json.loads((tmp_path / "steps.json").read_text())
    steps = found["steps"]
    assert found["pool_tokens"] == 320 and steps == recorder.steps()
    assert sum(new for _, _, new, _ in steps) >= 175 and steps[0][:2] == [0, 0]
    assert all(milliseconds > 0 for *_, milliseconds in steps)
    made = [[*held, 2.0 + 1e-3 * held[1] + 0.1 * (held[0] + held[2])] for *held, _ in steps]
    costs = Costs.of(made, 1e-3)
    again = simulate(jobs, costs, 320, SchedulerLimits(4, 64, 64))
    assert again["steps"] == len(steps)
    assert again["seconds"] == pytest.approx(sum(step[3] for step in made) / 1e3, rel=1e-3)
    assert again["output_throughput"] == pytest.approx(190 / again["seconds"])
    with pytest.raises(CapacityError, match="a pool of 128 tokens"):
        simulate(jobs, costs, 128, SchedulerLimits(4, 64, 64))
