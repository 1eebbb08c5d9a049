"""`octavo bench serve`: what is asked, when it is asked, and the numbers that come of it."""

import json
import math

import numpy as np
import pytest

from octavo.base.errors import BadValue, UnknownChoice, UsageError
from octavo.cli import main
from octavo.serve.bench.datasets import Item, Lengths, Style, Wanted
from octavo.serve.bench.drive import Arrivals
from octavo.serve.bench.figures import METRICS, details, figures, parse_goodput
from octavo.serve.bench.files import open_dataset
from octavo.serve.bench.listen import Sample
from tests.serve.fake_server import Fake, serving

SHORT = Wanted(input=Lengths(4, 9), output=Lengths(2, 3))


@pytest.fixture(autouse=True)
def roomy_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# datasets


def test_random_prompts_are_new_at_each_level_and_the_same_for_each_server():
    dataset = open_dataset("random", SHORT)
    first, again, second = (dataset.items(40, level, Style(vocab=2000), 1)[0] for level in (0, 0, 1))
    assert first == again and not {tuple(one.prompt) for one in first} & {tuple(one.prompt) for one in second}
    assert {len(one.prompt) for one in first} == {one.input_tokens for one in first} == set(range(4, 10))
    assert {one.output_tokens for one in first} == {2, 3}
    assert all(300 <= token < 2000 for one in first for token in one.prompt)
    [text], _ = dataset.items(1, 0, Style(ids=False), 1)
    [chat], _ = dataset.items(1, 0, Style(chat=True), 1)
    assert len(text.prompt.split()) == text.input_tokens
    assert chat.prompt == [{"role": "user", "content": text.prompt}]


@pytest.mark.parametrize(
    ("text", "ratio", "found"), [("128", 0, (128, 128)), ("64:256", 0, (64, 256)), ("100", 0.25, (75, 125))]
)
def test_lengths(text, ratio, found):
    lengths = Lengths.parse(text, ratio)
    assert (lengths.low, lengths.high) == found


@pytest.mark.parametrize(("text", "ratio"), [("0", 0), ("9:3", 0), ("a", 0), ("1:2:3", 0), ("5", 1.0), ("5", math.nan)])
def test_lengths_that_cannot_be(text, ratio):
    with pytest.raises(BadValue):
        Lengths.parse(text, ratio)


def test_rows_of_a_file_are_used_up_before_they_come_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{n}", "max_tokens": n + 1}) + "\n" for n in range(6)) + "\n")
    dataset = open_dataset(str(file), SHORT)
    levels = [dataset.items(2, level, Style(), 0) for level in range(4)]
    asked = [item.prompt for items, _ in levels[:3] for item in items]
    assert sorted(asked) == [f"p{n}" for n in range(6)] and [again for _, again in levels] == [False] * 3 + [True]
    assert all(item.output_tokens == int(str(item.prompt)[1:]) + 1 for items, _ in levels for item in items)
    assert len(dataset.items(None, 0, Style(chat=True), 0)[0]) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"), ("{}", "line 1 has no `prompt`"), ("[1]", "has no `prompt`"), ("x", "line 1 is not JSON"),
        ('{"prompt": ["a"]}', "no `prompt`"), ('{"prompt": "a", "max_tokens": -1}', "an answer of -1 tokens"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_asked(text, said, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        open_dataset(str(file), SHORT)


def test_messages_go_to_chat_only(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    dataset = open_dataset(str(file), SHORT)
    assert dataset.chat and dataset.items(1, 0, Style(chat=True), 0)[0][0].prompt[0]["content"] == "Hi"
    with pytest.raises(UsageError, match="the file has messages"):
        dataset.items(1, 0, Style(), 0)


@pytest.mark.parametrize(
    "text",
    [
        "timestamp,input_tokens,output_tokens\n7,30,4\n5,10,2\n5.5,0,2\n6,20,3\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,10,2\n"
        "2023-11-16 18:15:47.6805900,20,3\n2023-11-16 18:15:48.6805900,30,4\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,x,10,2,12,a\n6,x,20,3,23,a\n7,x,30,4,34,a\n",
    ],
    ids=["plain", "azure", "burstgpt"],
)
def test_traces(text, tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    for name in (str(file), f"trace:{file}"):
        items, _ = open_dataset(name, Wanted(rate_scale=2.0)).items(None, 0, Style(), 0)
        assert [(one.at, one.input_tokens, len(one.prompt), one.output_tokens) for one in items] == [
            (0.0, 10, 10, 2), (0.5, 20, 20, 3), (1.0, 30, 30, 4),
        ]  # fmt: skip
        assert Arrivals().times(items, np.random.default_rng(0)) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "timestamp,input_tokens,output_tokens\nx,1,1\n", ""])
def test_traces_that_are_none(text, tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"trace\.csv"):
        open_dataset(str(file), SHORT)


# arrivals and figures


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_their_rate_and_their_burstiness(burstiness):
    items = [Item("x", None, 1)] * 20000
    times = np.asarray(Arrivals(50.0, burstiness).times(items, np.random.default_rng(0)))
    gaps = np.diff(times)
    assert times[0] == 0 and gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)  # of a gamma distribution
    assert Arrivals().times(items[:2], np.random.default_rng(0)) == [0.0, 0.0]


def sample(sent: float, first: float, gap: float, tokens: int, error: str | None = None) -> Sample:
    one = Sample(sent, 10, sent=sent, first=first, gaps=[gap] * (tokens - 1), error=error)
    one.last = one.ended = first + gap * (tokens - 1)
    return one


def test_figures_by_hand():
    samples = [sample(0.0, 0.1, 0.01, 11), sample(1.0, 1.3, 0.02, 6), sample(0.5, 4.0, 1.0, 1, error="HTTP 500")]
    found = figures(samples, {"ttft": 0.2, "tpot": 0.05}, cpu_seconds=0.4)
    assert (found["duration"], found["completed"], found["failed"]) == (4.0, 2, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (20, 17)
    assert found["request_throughput"] == 0.5 and found["output_throughput"] == 17 / 4
    assert found["total_token_throughput"] == 37 / 4 and found["request_goodput"] == 0.25
    assert found["mean_ttft_ms"] == pytest.approx(200) and found["p99_ttft_ms"] == pytest.approx(298)
    assert found["mean_tpot_ms"] == pytest.approx(15) and found["std_tpot_ms"] == pytest.approx(5)
    assert found["median_itl_ms"] == pytest.approx(10) and found["p90_itl_ms"] == pytest.approx(20)
    assert found["mean_e2el_ms"] == pytest.approx(300)
    assert found["errors_first"] == ["1 x HTTP 500"] and found["token_counts"] == "chunks"
    assert found["client_cpu_share"] == pytest.approx(0.1)
    assert details(samples)["errors"] == [None, None, "HTTP 500"]


def test_figures_of_nothing():
    found = figures([], {}, 0.0)
    assert found["request_throughput"] == 0 and found["request_goodput"] is None
    assert all(found[f"{key}_{name}_ms"] is None for name in METRICS for key in ("mean", "median", "std", "p99"))
    json.dumps(found, allow_nan=False)


def test_goodput_words():
    assert parse_goodput(["ttft:200", "e2el:1e3"]) == {"ttft": 0.2, "e2el": 1.0}
    for word in ("ttft", "ttft:", "ttft:-1", "ttft:nan"):
        with pytest.raises(BadValue):
            parse_goodput([word])
    with pytest.raises(UnknownChoice):
        parse_goodput(["tftt:3"])


# the verb


def test_two_servers_through_a_sweep(tmp_path, capsys):
    slow, quick = Fake(pause=0.002, kv_cache={"dtype": "bf16"}), Fake(kv_cache={"dtype": "int8"})
    data, chart = tmp_path / "bench.json", tmp_path / "bench.svg"
    with serving(slow) as one, serving(quick) as other:
        flags = ["--concurrency", "1,3", "--num-prompts", "6", "--input-len", "4:8", "--output-len", "5"]
        flags += ["--json", str(data), "--chart", str(chart), "--num-warmups", "2", "--goodput", "ttft:5000"]
        assert main(["bench", "serve", one, other, "--ignore-eos", *flags]) == 0
    runs = json.loads(data.read_text())["runs"]
    assert [(run["label"], run["max_concurrency"]) for run in runs] == [
        ("toy bf16", 1), ("toy bf16", 3), ("toy int8", 1), ("toy int8", 3)]  # fmt: skip
    for run in runs:
        assert (run["completed"], run["failed"], run["total_output_tokens"]) == (6, 0, 30)
        assert run["prompts"] == "token ids" and run["token_counts"] == "usage" and run["total_cached_tokens"] == 18
        assert run["request_goodput"] == run["request_throughput"]
    assert all(run["p50_itl_ms"] > 2 for run in runs[:2]) and slow.most_at_once == 3
    prompts = [[tuple(body["prompt"]) for body in fake.bodies[1:]] for fake in (slow, quick)]  # the first is the probe
    assert sorted(prompts[0]) == sorted(prompts[1]) and len(set(prompts[0])) == 2 + 6 + 6
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in slow.bodies)
    shown, svg = capsys.readouterr().out, chart.read_text()
    assert "toy int8" in shown and "TTFT" in shown
    assert svg.startswith("<?xml") and "requests at once" in svg


def test_a_server_that_takes_neither_token_ids_nor_usage(tmp_path, capsys):
    def refuse(body):
        if "stream_options" in body or not isinstance(body["prompt"], str):
            return 422, "unknown field"
        return None

    fake, data = Fake(refuse=refuse), tmp_path / "bench.json"
    with serving(fake) as url:
        words = ["--num-prompts", "3", "--input-len", "5", "--output-len", "4", "--save-detailed", "--json", str(data)]
        assert main(["bench", "serve", url, *words]) == 0
    found = json.loads(data.read_text())
    assert (found["prompts"], found["token_counts"]) == ("text", "chunks")
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (15, 12)
    assert found["generated_texts"] == [" w0 w1 w2 w3"] * 3 and [len(gaps) for gaps in found["itls"]] == [3, 3, 3]
    assert "sends no usage" in capsys.readouterr().out


def test_failures_are_counted_and_shown(tmp_path, capsys):
    def refuse(body):
        return (500, "out of luck") if len(fake.bodies) % 2 == 0 else None

    fake = Fake(refuse=refuse)
    with serving(fake) as url:
        assert main(["bench", "serve", url, "--num-prompts", "4", "--output-len", "2", "--max-concurrency", "1"]) == 0
    assert "2 x HTTP 500: out of luck" in capsys.readouterr().out
    cut, data = Fake(), tmp_path / "bench.json"
    with serving(cut) as url:
        cut.refuse = lambda body: setattr(cut, "cut_after", 3 if len(cut.bodies) > 1 else None)
        assert main(["bench", "serve", url, "--num-prompts", "4", "--output-len", "9", "--json", str(data)]) == 1
    found = json.loads(data.read_text())
    assert (found["completed"], found["failed"], found["mean_ttft_ms"]) == (0, 4, None)
    assert found["errors_first"] == ["4 x the connection was lost"]


def test_rates_are_kept(tmp_path):
    data = tmp_path / "bench.json"
    with serving(Fake()) as url:
        words = ["--request-rate", "200", "--num-prompts", "30", "--output-len", "2", "--endpoint", "chat"]
        assert main(["bench", "serve", url, *words, "--save-detailed", "--json", str(data)]) == 0
    found = json.loads(data.read_text())
    assert found["request_rate"] == 200 and found["prompts"] == "messages" and found["completed"] == 30
    due, sent = found["due_times"], found["start_times"]
    assert due[-1] - due[0] > 0.05 and min(np.subtract(sent, due)) > -1e-3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no server to measure"),
        (["localhost:8000"], "no URL of a server"),
        (["http://a", "--concurrency", "1,2", "--max-concurrency", "3"], "give one of them"),
        (["http://a", "--concurrency", "0"], "concurrency: 0"),
        (["http://a", "--request-rate", "0"], "request-rate 0"),
        (["http://a", "--dataset", "randon"], "unknown dataset"),
        (["http://a", "--dataset", "/no/such.jsonl"], "cannot read"),
        (["http://a", "--num-prompts", "0"], "num-prompts: 0"),
        (["http://a", "--goodput", "speed:3"], "unknown goodput metric"),
        (["http://a", "--chart", "/no/such/folder/x.png"], "no such folder"),
        (["http://127.0.0.1:9"], "no connection to http://127.0.0.1:9"),
    ],
)
def test_wrong_use(words, said, capsys):
    assert main(["bench", "serve", *words]) == 2
    assert said in capsys.readouterr().err


def test_servers_that_refuse(capsys):
    with serving(Fake(refuse=lambda body: (404, "no such model"))) as url:
        assert main(["bench", "serve", url]) == 2
        assert "refused one token: HTTP 404: no such model" in capsys.readouterr().err
