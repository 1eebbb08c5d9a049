"""What the benchmark of start times writes is a checkpoint, and its phases add up."""

import time

import torch

from benchmarks.start import Phases, write_checkpoint
from octavo.checkpoint import open_checkpoint


def test_the_checkpoint_it_writes_opens_in_shards_with_a_tokenizer(tmp_path):
    size = write_checkpoint(tmp_path, "tiny", shard_bytes=500_000)
    source = open_checkpoint(str(tmp_path))
    source.check()
    assert source.weight_bytes == size and len(list(tmp_path.glob("*.safetensors"))) > 2
    assert source.load("model.norm.weight").dtype == torch.bfloat16
    tokenizer = source.tokenizer()
    ids = tokenizer.encode("Ottava, più")
    assert len(ids) == len("Ottava, più".encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == "Ottava, più"


def test_a_phase_within_another_counts_once():
    phases = Phases()

    def outer() -> None:
        phases.timed("inner", lambda: time.sleep(0.02))

    begin = time.perf_counter()
    phases.timed("outer", outer)
    whole = time.perf_counter() - begin
    assert phases.seconds["inner"] >= 0.02
    assert 0 <= phases.seconds["outer"] < whole - phases.seconds["inner"] + 1e-3
