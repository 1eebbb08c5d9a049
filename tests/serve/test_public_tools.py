"""Tools of others, unchanged, against a real server: `make interop` installs them beside and runs this file.

`OCTAVO_INTEROP` names the environment they are in (a folder with bin/); without it these tests are skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from real_server import Server

from octavo.checkpoint import open_tokenizer

TOOLS = Path(os.environ.get("OCTAVO_INTEROP") or "/nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (TOOLS / "bin/python").exists(), reason="OCTAVO_INTEROP names no environment with the tools"
    ),
]
QUESTIONS = [
    ("The capital of France is", (" Paris", " a kind of cheese", " seven"), 0),
    ("Two plus two makes", (" purple", " four", " the sea at night"), 1),
    ("Fish live in the", (" water", " engine of a car", " square root"), 0),
    ("The sun rises in the", (" refrigerator", " bottle", " east"), 2),
]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
TASKS = {
    "toy_choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    },
    "toy_words": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "temperature": 0.0}, "metric_list": [],
    },
    "toy_perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}  # fmt: skip


def run(*words: str | Path, more: dict[str, str] | None = None, seconds: float = 300) -> str:
    env = {"PATH": f"{TOOLS}/bin:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/"), **(more or {})}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=env, timeout=seconds)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_lm_evaluation_harness(server: Server, tmp_path: Path):
    documents = [{"question": q, "choices": list(c), "answer": a} for q, c, a in QUESTIONS]
    (tmp_path / "toy.jsonl").write_text("\n".join(map(json.dumps, documents)))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "toy.jsonl")}}}
        whole = {"task": name, "test_split": "test", **data, **task}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    about = f"model=smollm2,base_url={server.url}/v1/completions,tokenizer_backend=remote,num_concurrent=4"
    words = ["--model", "local-completions", "--model_args", about, "--tasks", ",".join(TASKS), "--log_samples"]
    run(
        TOOLS / "bin/lm_eval",
        "run",
        *words,
        "--include_path",
        tmp_path,
        "--output_path",
        tmp_path / "out",
        more=OFFLINE,
    )
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    assert results["toy_choice"]["acc,none"] == 1.0
    assert 1 < results["toy_perplexity"]["word_perplexity,none"] < 1e6
    (samples,) = (tmp_path / "out").rglob("samples_toy_words_*.jsonl")
    said = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert len(said) == 4 and "Paris" in said[0]


LLMETER = """
import asyncio, json, sys
from llmeter.endpoints import OpenAICompletionStreamEndpoint
from llmeter.runner import Runner

async def main():
    endpoint = OpenAICompletionStreamEndpoint("smollm2", base_url=sys.argv[1] + "/v1", api_key="none")
    payload = {"messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 16}
    result = await Runner(endpoint).run(payload=payload, clients=8, n_requests=3)
    answers = [{"tokens": one.num_tokens_output, "first": one.time_to_first_token, "error": one.error}
               for one in result.responses]
    print("FOUND", json.dumps(answers))

asyncio.run(main())
"""


def test_llmeter(server: Server):
    out = run(TOOLS / "bin/python", "-c", LLMETER, server.url)
    answers = json.loads(out.split("FOUND", 1)[1])
    assert len(answers) == 24
    assert all(one["error"] is None and 0 < one["tokens"] <= 16 and one["first"] > 0 for one in answers), answers


def test_aiperf(server: Server, tmp_path: Path):
    tokenizer, folder = open_tokenizer("smollm2"), tmp_path / "tokenizer"
    folder.mkdir()
    vocabulary = tokenizer.backend.vocabulary()
    assert isinstance(vocabulary, str)
    (folder / "tokenizer.json").write_text(vocabulary)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    words = ["--model", "smollm2", "--url", server.url, "--endpoint-type", "chat", "--streaming", "--ui", "none"]
    load = ["--concurrency", "4", "--request-count", "12", "--synthetic-input-tokens-mean", "40"]
    more = ["--output-tokens-mean", "12", "--extra-inputs", "ignore_eos:true", "--artifact-dir", tmp_path / "out"]
    run(TOOLS / "bin/aiperf", "profile", *words, *load, *more, "--tokenizer", folder)
    found = json.loads(next((tmp_path / "out").rglob("profile_export_aiperf.json")).read_text())
    assert found["request_count"]["avg"] == 12 and not found.get("error_summary"), found
    assert found["usage_completion_tokens"]["avg"] > 0 and found["inter_token_latency"]["avg"] > 0
    scraped = next((tmp_path / "out").rglob("server_metrics_export.json")).read_text()
    assert "octavo:generation_tokens" in scraped
