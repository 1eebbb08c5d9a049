"""Which kernels run: the fast ones where every scheme has a row codec, otherwise the reference, with the reason."""

from dataclasses import replace

import pytest

from octavo.base.errors import UsageError
from octavo.kernels.choice import choose
from octavo.kv.plan import KVPlan, LayerPlan, SidePlan, uniform_plan
from octavo.kv.schemes import SCHEMES

TOY = replace(SCHEMES["fp32"], name="toy", row_codec=None)
TOY_PLAN = KVPlan("toy", (LayerPlan(SidePlan(TOY, False), SidePlan(SCHEMES["int8"], True)),))


@pytest.mark.parametrize("dtype", list(SCHEMES))
def test_every_scheme_runs_on_the_cpu_kernels(dtype):
    assert choose("auto", "cpu", uniform_plan(dtype, 1, 64)).impl == "cpu"


def test_a_scheme_without_a_codec_runs_on_the_reference():
    choice = choose("auto", "cpu", TOY_PLAN)
    assert choice.impl == "reference"
    assert "toy" in (choice.reason or "")


def test_asking_for_the_cpu_kernels_and_not_getting_them_is_an_error():
    with pytest.raises(UsageError, match="toy"):
        choose("cpu", "cpu", TOY_PLAN)


def test_triton_is_for_gpus_and_says_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr("octavo.kernels.choice.find_spec", lambda name: object())
    plan = uniform_plan("int8", 1, 64)
    assert choose("auto", "cuda", plan).impl == "triton"
    assert choose("auto", "cuda", uniform_plan("int8", 1, 64, bias_free=True)).impl == "triton"
    for device, wrong, page_tokens, words in (
        ("cpu", plan, 64, "run on a GPU"),
        ("cuda", plan, 32, "pages have 32"),
    ):
        with pytest.raises(UsageError, match=words):
            choose("triton", device, wrong, page_tokens)
    assert choose("auto", "cuda", plan, 32).impl == "reference"
    monkeypatch.setattr("octavo.kernels.choice.find_spec", lambda name: None)
    assert choose("auto", "cuda", plan).reason == "triton is not installed"
