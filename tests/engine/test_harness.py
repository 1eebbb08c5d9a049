"""Octavo as a model of lm-evaluation-harness, beside transformers. Where lm_eval is not installed, a stand-in with its
base class's few attributes carries the tests of what is ours; those that need its tasks are skipped."""

import importlib
import json
import math
import sys
import types
from importlib.util import find_spec

import pytest
import torch

from octavo.base.errors import RequestError
from octavo.base.log import log

pytestmark = pytest.mark.filterwarnings("ignore")  # those of lm_eval and what it imports
THERE = find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not THERE, reason="lm_eval is not installed")
ARGS = {"dtype": "float32", "kv_cache_dtype": "fp32", "kv_cache_memory": "8192tok", "kv_self_test": "off"}


class Hook:
    def add_partial(self, *_):
        pass


class StandIn:
    def __init__(self):
        self.cache_hook = Hook()


@pytest.fixture(scope="module")
def lm(readable):
    if THERE:
        yield importlib.import_module("octavo.evals.harness.model").OctavoLM(pretrained=readable, **ARGS)
        return
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.utils")
    parts = {name: types.ModuleType(name) for name in names}
    parts["lm_eval.api.model"].TemplateLM = StandIn
    parts["lm_eval.utils"].get_rolling_token_windows = parts["lm_eval.utils"].make_disjoint_window = None
    with pytest.MonkeyPatch.context() as patch:
        for name, module in parts.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("octavo.evals.harness.model").OctavoLM(pretrained=readable, **ARGS)
        sys.modules.pop("octavo.evals.harness.model")


@pytest.fixture(scope="module")
def theirs(checkpoint):
    _, model = checkpoint("llama")

    def logprobs(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    return logprobs


def asked(*args) -> types.SimpleNamespace:
    return types.SimpleNamespace(args=args)


def test_pairs(lm, theirs):
    """Continuations of one and of several tokens, a greedy one, and two that share all but their last token."""
    context = lm.tok_encode("An oak is")
    greedy, ids = [], list(context)
    for _ in range(3):
        greedy.append(int(theirs(ids)[-1].argmax()))
        ids.append(greedy[-1])
    continuations = [[40], [41], [42, 50, 60], [42, 50, 61], greedy]
    found = lm._loglikelihood_tokens([(("c", "x"), context, one) for one in continuations])
    for continuation, (total, is_greedy) in zip(continuations, found, strict=True):
        rows = theirs(context + continuation)[len(context) - 1 : -1]
        want = sum(float(rows[at, token]) for at, token in enumerate(continuation))
        assert total == pytest.approx(want, abs=1e-3)
        assert is_greedy == (rows.argmax(-1).tolist() == continuation)
    assert [one for _, one in found][-1] is True
    with pytest.raises(RequestError, match="no token is left"):
        lm._loglikelihood_tokens([(("c", ""), context, [])])


def test_what_is_too_long_loses_its_beginning(lm, theirs):
    generator = torch.Generator().manual_seed(3)
    longest = lm.max_length
    ids = torch.randint(3, 250, (longest + 40,), generator=generator).tolist()
    [(total, _)] = lm._loglikelihood_tokens([(None, ids[:-5], ids[-5:])])
    kept = ids[-(longest + 1) :]
    rows = theirs(kept[:-1])[-5:]
    assert total == pytest.approx(sum(float(rows[at, token]) for at, token in enumerate(kept[-5:])), abs=1e-3)


def test_generation_stops_before_the_word(lm):
    from octavo import SamplingParams

    prompt = "Tree number 7?"
    [whole] = lm.llm.generate([prompt], SamplingParams(max_tokens=24, temperature=0))
    stop = whole.text[5:7]
    got = lm.generate_until([
        asked(prompt, {"until": [stop], "max_gen_toks": 24, "do_sample": False}),
        asked(prompt, {"until": [], "max_gen_toks": 24}),
    ])  # fmt: skip
    assert got == [whole.text[: whole.text.index(stop)], whole.text]


@needs_lm_eval
def test_running_text_in_windows(readable, theirs):
    """Every token once: the first after the prefix token, later windows after the last token of the one before."""
    model = importlib.import_module("octavo.evals.harness.model").OctavoLM
    lm = model(pretrained=readable, **ARGS, max_model_len=32)
    text = "ash birch cedar elm fir oak pine yew " * 4
    ids = lm.tok_encode(text, add_special_tokens=False)
    assert len(ids) > 3 * 32 and len(ids) % 32
    want, before = 0.0, lm.prefix_token_id
    for begin in range(0, len(ids) - len(ids) % 32, 32):
        part = ids[begin : begin + 32]
        want += float(theirs([before, *part[:-1]]).gather(1, torch.tensor(part)[:, None]).sum())
        before = part[-1]
    rest = len(ids) % 32  # the last window is a whole one, of which only what is new counts
    rows = theirs(ids[-33:-1])[-rest:]
    want += float(rows.gather(1, torch.tensor(ids[-rest:])[:, None]).sum())
    assert lm.loglikelihood_rolling([asked(text)])[0] == pytest.approx(want, abs=1e-2)


@pytest.fixture
def tasks(tmp_path) -> str:
    """Two tasks of the harness over local JSON lines: one of choices, one that generates."""
    words = "ash birch cedar elm fir oak pine yew".split()
    rows = [
        {"question": f"Tree number {n}?", "choices": [words[n % 8], words[(n + 3) % 8]], "answer": n % 2}
        for n in range(10)
    ]
    (tmp_path / "trees.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "trees.jsonl")}},
        "test_split": "test", "doc_to_text": "{{question}}\n\nAnswer:",
    }  # fmt: skip
    choices = {
        "task": "trees", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    generated = {
        "task": "words", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    for task in (choices, generated):  # JSON is YAML
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(shared | task))
    return str(tmp_path)


@needs_lm_eval
def test_a_task_from_the_command_line(readable, theirs, tasks, monkeypatch, tmp_path):
    """The harness' own command line, unchanged, over files of ours; its answers are those of transformers."""
    from octavo.evals.harness.__main__ import main

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    given = ",".join(f"{name}={value}" for name, value in {"pretrained": readable, **ARGS}.items())
    words = ["lm_eval", "--model", "octavo", "--model_args", given, "--tasks", "trees,words"]
    words += ["--include_path", tasks, "--log_samples", "--output_path", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(log, "propagate", True)  # what `main` sets is undone after the test
    assert main() == 0
    [results] = (tmp_path / "out").rglob("results_*.json")
    data = json.loads(results.read_text())["results"]
    [samples] = (tmp_path / "out").rglob("samples_trees_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 10 and 0 <= data["words"]["exact_match,none"] <= 1
    tokenizer = importlib.import_module("octavo").LLM(readable, **ARGS).tokenizer
    right = 0
    for row in rows:
        doc, sums = row["doc"], []
        for choice in doc["choices"]:
            context = tokenizer.encode(f"{doc['question']}\n\nAnswer:")
            whole = tokenizer.encode(f"{doc['question']}\n\nAnswer: {choice}")
            logits = theirs(whole)
            sums.append(sum(float(logits[at - 1, whole[at]]) for at in range(len(context), len(whole))))
        got = [float(one[0][0]) if isinstance(one[0], list) else float(one[0]) for one in row["resps"]]
        assert all(math.isclose(x, y, abs_tol=1e-3) for x, y in zip(got, sums, strict=True))
        right += sums.index(max(sums)) == doc["answer"]
    assert data["trees"]["acc,none"] == pytest.approx(right / 10)
