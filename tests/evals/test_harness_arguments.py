"""lm-evaluation-harness' words as options of ours; lm_eval need not be there."""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from octavo.base.errors import BadValue
from octavo.base.log import log
from octavo.evals.harness.__main__ import main
from octavo.evals.harness.arguments import engine_options, max_tokens_of, sampling_of


def test_model_args():
    given = {"pretrained": "smollm2", "kv_cache_dtype": "int8/int4", "max_model_len": "512", "debug": "true",
             "enable_prefix_caching": False, "kv_rotate": True, "kv_cache_memory": 0.5, "device": None}  # fmt: skip
    found = engine_options(given)
    assert found["model"] == "smollm2" and found["kv_cache_dtype"] == "int8,int4"
    assert (found["max_model_len"], found["debug"], found["enable_prefix_caching"]) == (512, True, False)
    assert (found["kv_rotate"], found["kv_cache_memory"]) == ("on", 0.5)
    assert "device" not in found and "pretrained" not in found
    assert engine_options({"pretrained": "x", "device": "cuda"})["device"] == "auto"
    assert engine_options({"pretrained": "x", "device": "cuda:1"})["device"] == "cuda:1"
    assert engine_options({"model": "smollm2", "max_num_batched_tokens": 64})["max_num_seqs"] == 64


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no model was given"),
        ({"pretrained": "x", "kv_dtype": "int8"}, "unknown model_args: kv_dtype"),
        ({"pretrained": "x", "debug": "perhaps"}, "debug: `perhaps`"),
        ({"pretrained": "x", "max_model_len": "long"}, "max_model_len: `long`"),
    ],
)
def test_model_args_that_cannot_be(given, said):
    with pytest.raises(BadValue, match=said):
        engine_options(given)


def test_generation_kwargs():
    greedy = sampling_of({"until": ["\n\n", ""], "max_gen_toks": 32})
    assert (greedy.greedy, greedy.stop, greedy.max_tokens) == (True, ("\n\n",), 32)
    assert sampling_of({"until": "Q:", "do_sample": False, "temperature": 0.7}).greedy
    assert sampling_of({"do_sample": True}).temperature == 1.0
    drawn = sampling_of({"temperature": 0.7, "top_p": 0.9, "top_k": 5})
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.max_tokens) == (0.7, 0.9, 5, 256)
    assert max_tokens_of({"max_new_tokens": 7, "max_tokens": 9}) == 7


def test_what_means_nothing_is_said(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)  # a command line that ran here before may have turned it off
    with caplog.at_level("WARNING", "octavo"):
        sampling_of({"until": [], "num_beams": 4})
    assert "num_beams" in caplog.text


def test_without_lm_eval(monkeypatch, capsys):
    for name in ("lm_eval", "lm_eval.__main__"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main() == 2
    assert capsys.readouterr().err == "error: lm_eval is not installed\nhint: pip install 'octavo[lm-eval]'\n"


def test_the_entry_point_names_the_model():
    """lm_eval looks in the group `lm_eval.models` for `module:class`."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["octavo"].partition(":")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None and f"\nclass {name}(" in Path(spec.origin).read_text()
