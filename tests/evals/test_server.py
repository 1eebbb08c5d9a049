"""Servers that speak OpenAI's completions API: what is asked of them, what is made of answers, and failures."""

import json
import math
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from octavo.base.errors import BadValue, OctavoError, RequestError, UsageError
from octavo.evals.echo import option_sum, read_echo
from octavo.evals.run_eval import EvalOptions, report_of, run_eval
from octavo.evals.server import ServerOptions, connect, urls_of
from octavo.evals.tasks import open_task

BOS = "<s>"
WORDS = "ash birch cedar elm fir oak pine yew".split()


def pieces(text: str) -> list[str]:
    """Tokens of the stand-in: words with the space before them, and all else by the character."""
    return re.findall(r" ?\w+|\W", text)


def logprob(before: str, token: str, salt: int) -> float:
    """Any function of the two last tokens will do, if it is always the same."""
    return -1 - sum((n + salt) * ord(letter) for n, letter in enumerate(before + token, 1)) % 97 / 10


class Model:
    """A toy, and how its server is to behave: `script` is asked before each completion with its number, and may give
    (status, headers, body), or None to go on."""

    name = "toy/word-model"

    def __init__(self, salt: int = 0, script=lambda number: None, echo: bool = True, split=pieces):
        self.salt, self.script, self.echo, self.split = salt, script, echo, split
        self.prompts: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def reply(self, body: dict) -> tuple[int, dict, bytes]:
        with self.lock:
            self.prompts.append(body["prompt"])
            said = self.script(len(self.prompts))
        if said is not None:
            return said
        if body["model"] != self.name:
            return 404, {}, json.dumps({"error": {"message": f"no model {body['model']}"}}).encode()
        prompt, new = [BOS, *self.split(body["prompt"])], [f" {7 + self.salt}"]
        shown = prompt + new if body.get("echo") and self.echo else new
        scores = [None] + [logprob(*pair, self.salt) for pair in zip(prompt, prompt[1:] + new, strict=True)]
        choice = {"text": "".join(shown), "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"tokens": shown, "token_logprobs": scores[-len(shown) :]}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(new)}
        return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()


class Listening(ThreadingHTTPServer):
    request_queue_size = 64
    """connections that wait to be taken; beyond the usual 5 a client tries again after a second"""


@contextmanager
def serving(model: Model, port: int = 0):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, headers: dict, body: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.answer(200, {}, json.dumps({"data": [{"id": model.name}]}).encode())

        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model.headers.append(dict(self.headers))
            self.answer(*model.reply(body))

        def log_message(self, *given) -> None:
            pass

    with Listening(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("task") / "trees.jsonl"
    rows = [
        {"id": n, "question": f"Tree {n}?", "choices": [WORDS[n % 8], f"old {WORDS[(n + 3) % 8]}"], "answer": n % 2}
        for n in range(24)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def options(url: str, task: str, out: Path, **changes) -> EvalOptions:
    server = ServerOptions(**{"concurrency": 4, "retries": 2, "backoff_seconds": 0.001, **changes.pop("server", {})})
    return EvalOptions(model=url, task=task, out=str(out), server=server, **{"form": "cloze", "wave": 5, **changes})


def run(*given, **changes):
    return run_eval(options(*given, **changes), lambda *step: None)


def lines(path: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert max(Counter(row["id"] for row in rows).values()) == 1
    return {row["id"]: row for row in rows}


def want(context: str, option: str, salt: int = 0) -> float:
    tokens, start = [BOS, *pieces(context + option)], 1 + len(pieces(context))
    return sum(logprob(tokens[at - 1], tokens[at], salt) for at in range(start, len(tokens)))


@pytest.mark.parametrize("form", ["cloze", "letter"])
def test_log_probabilities_are_those_of_the_options_tokens(questions, tmp_path, form):
    with serving(Model()) as url:
        ran = run(url + "/v1/", questions, tmp_path, form=form, control=False)
    [(name, path)] = ran.files.items()
    assert name == f"word-model-127.0.0.1-{url.rsplit(':')[-1]}" and path.name == f"{name}.jsonl"
    found = lines(path)
    for item in open_task(questions, form=form).items:
        sums = [want(item.context, option) for option in item.options]
        assert list(found[item.id]["logprobs"].values()) == pytest.approx(sums)
        weigh = item.lengths if form == "cloze" else (1, 1)
        best = max(range(2), key=lambda o: sums[o] / weigh[o])
        assert (found[item.id]["answer"], found[item.id]["correct"]) == ("AB"[best], best == item.gold)
        assert "kl" not in found[item.id]
    assert ran.about["device"] == url and ran.about["model"] == Model.name


def test_two_servers_side_by_side_and_a_control_that_changes_nothing(questions, tmp_path):
    with serving(Model()) as one, serving(Model(salt=3)) as other:
        report = report_of(run(f"{one},{other}", questions, tmp_path), margin=1.0)
    data = report.as_dict()
    [pair] = data["pairs"]
    assert pair["a"].endswith(one[-5:]) and pair["b"].endswith(other[-5:]) and pair["n"] == 24 and pair["changed"] > 0
    assert data["control"]["changed"] == 0 and data["control"]["kl_mean"] is None
    assert (tmp_path / "control.jsonl").read_text() != Path(data["files"][pair["a"]]).read_text()  # another order
    assert data["servers"][pair["b"]] == {"url": other, "model": Model.name}


def test_letters_that_say_nothing_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "logprob", lambda before, token, salt: -ord(token[-1]) / 9)
    rows = [{"subject": "astronomy", "question": f"{n}?", "choices": WORDS[n : n + 4], "answer": n} for n in range(4)]
    data = tmp_path / "mmlu_test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(Model()) as url:
        for _ in ("a run", "and the same again, all of it done"):
            ran = run(url, "mmlu:astronomy", tmp_path / "out", form="auto", data=str(data), control=False)
    assert ran.about["form"] == "cloze"
    assert ran.about["letter_form"] == {"label": "A", "share": 1.0, "items": 4, "blind": True}


def test_a_server_that_dies_and_comes_back(questions, tmp_path):
    with serving(Model()) as url:
        whole = run(url, questions, tmp_path / "whole")
    port = int(url.rsplit(":")[-1])
    dying = Model(script=lambda number: (500, {}, b"out of memory") if number > 21 else None)
    with serving(dying, port), pytest.raises(UsageError, match=r"3 tries: HTTP 500: out of memory") as error:
        run(url, questions, tmp_path / "cut")
    assert "what is done is kept" in error.value.hint
    [cut] = [path for path in (tmp_path / "cut").glob("*.jsonl") if path.read_text()]
    kept = lines(cut)
    assert 0 < len(kept) <= 10
    with pytest.raises(UsageError, match="gave no answer in 3 tries"):
        run(url, questions, tmp_path / "cut")
    back = Model()
    with serving(back, port):
        again = run(url, questions, tmp_path / "cut")
    assert [lines(path) for path in again.files.values()] == [lines(path) for path in whole.files.values()]
    assert len(back.prompts) == 2 * (24 - len(kept)) + 2 * 24


def test_busy_and_broken_answers_are_tried_again(questions, tmp_path, monkeypatch):
    said = {
        2: (429, {"Retry-After": "0.03"}, b"slow down"),
        5: (503, {}, b""),
        9: (200, {}, b"<html>gateway</html>"),
        12: (200, {"Content-Length": "900"}, b'{"choices": ['),
    }
    pauses = []
    monkeypatch.setattr(threading.Event, "wait", _noting(threading.Event.wait, pauses))
    model = Model(script=said.get)
    with serving(model) as url:
        server = {"concurrency": 1, "api_key": "secret"}
        ran = run(url, questions, tmp_path, server=server, control=False, limit=8)
    [path] = ran.files.values()
    assert len(lines(path)) == 8 and len(model.prompts) == 16 + len(said)
    assert 0.03 in pauses and pauses.count(0.001) == 3
    assert {headers["Authorization"] for headers in model.headers} == {"Bearer secret"}
    assert not any("secret" in file.read_text() for file in tmp_path.iterdir())


def _noting(wait, pauses: list):
    def noted(self, timeout=None):
        pauses.append(timeout)
        return wait(self, timeout)

    return noted


def test_garbage_for_ever(questions, tmp_path):
    with (
        serving(Model(script=lambda number: (200, {}, b"\xff{"))) as url,
        pytest.raises(UsageError, match=r"3 tries: not JSON: .{"),
    ):
        run(url, questions, tmp_path)
    with (
        serving(Model(script=lambda number: (200, {}, b'{"error": "none"}'))) as url,
        pytest.raises(UsageError, match="answered without `choices`"),
    ):
        run(url, questions, tmp_path / "other")


def test_a_wrong_name_is_said_and_not_tried_again(questions, tmp_path):
    model = Model()
    with serving(model) as url, pytest.raises(RequestError, match=r"trees/.*refused: HTTP 404: no model gpt") as error:
        run(url, questions, tmp_path, server={"served_model_name": "gpt", "concurrency": 1})
    assert "--served-model-name" in error.value.hint
    assert len(set(model.prompts)) == len(model.prompts) < 24


def test_no_echo_is_said_and_generated_answers_still_run(questions, tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in (7, 8))
    )
    with serving(Model(echo=False)) as url:
        with pytest.raises(UsageError, match=r"does not score prompts.*none of the prompt's tokens") as error:
            run(url, questions, tmp_path / "out")
        assert "gsm8k" in error.value.hint
        ran = run(url, "gsm8k", tmp_path / "out", form="auto", data=str(tmp_path), control=False)
        text = tmp_path / "text.txt"
        text.write_text("A text. " * 50)
        with pytest.raises(UsageError, match="perplexity cannot be had from a server"):
            run(url, "text", tmp_path / "out", form="auto", data=str(text))
    [path] = ran.files.values()
    seven, eight = lines(path).values()
    assert (seven["correct"], eight["correct"], eight["answer"]) == (True, False, "7")
    assert (seven["output"], seven["tokens"], seven["finish"]) == (" 7", 1, "stop")


@pytest.mark.parametrize("split", ["across", "ids"])
def test_where_texts_do_not_tell_the_border_the_contexts_tokens_are_counted(split):
    def across(text: str) -> list[str]:
        return re.findall(r"\w+ ?|\W", text)  # the space that an option begins with belongs to the word before it

    def ids(text: str) -> list[str]:
        return [f"token_id:{len(piece)}" for piece in pieces(text)]

    cut = {"across": across, "ids": ids}[split]
    model = Model(split=cut)
    with serving(model) as url:
        found = option_sum(connect(url, ServerOptions(retries=0)), "the answer", " old oak", seed=0)
    tokens, start = [BOS, *cut("the answer old oak")], 1 + len(cut("the answer"))
    assert found == pytest.approx(sum(logprob(tokens[at - 1], tokens[at], 0) for at in range(start, len(tokens))))
    assert sorted(model.prompts) == ["the answer", "the answer old oak"]


def test_replies_without_usage_or_without_a_generated_token():
    def count(tokens: list[str], **usage: int) -> int:
        logprobs = {"tokens": tokens, "token_logprobs": [None, *(-1.0 for _ in tokens[1:])]}
        return len(read_echo({"choices": [{"logprobs": logprobs}], "usage": usage}, "a b", "it").tokens)

    assert count(["a", " b", " c"]) == count(["a", " b"]) == 2
    assert count([BOS, "a", " b", " c"]) == count([BOS, "a", " b", " c"], prompt_tokens=3) == 3
    assert count(["a", " b", " c"], prompt_tokens=3) == 2  # a count that has the BOS token, which is not shown
    for tokens, usage in ((["x"] * 9, {"prompt_tokens": 2}), ([" c"], {}), ([" c"], {"prompt_tokens": 2})):
        with pytest.raises(UsageError, match=r"none of the prompt's tokens"):
            count(tokens, **usage)
    with pytest.raises(UsageError, match=r"has no `logprobs.tokens` and no `logprobs.token_logprobs`"):
        read_echo({"choices": [{"logprobs": {"content": []}}]}, "a b", "it")


@pytest.mark.parametrize("value", [-math.inf, math.nan, None])
def test_a_log_probability_that_is_no_number(value):
    reply = {"tokens": ["a", " b", " b", "c"], "token_logprobs": [None, -1.0, value, -1.0]}
    said = 200, {}, json.dumps({"choices": [{"logprobs": reply}]}).encode()
    with serving(Model(script=lambda number: said)) as url, pytest.raises(OctavoError, match=f"is {value}"):
        option_sum(connect(url, ServerOptions()), "a b", " b", seed=0)


def test_the_verb_takes_a_name_and_urls(questions, tmp_path, capsys):
    from octavo.cli import main

    out, data = tmp_path / "out", tmp_path / "eval.json"
    with serving(Model()) as one, serving(Model(salt=3)) as other:
        flags = ["--url", f"{one},{other}", "--task", questions, "--out", str(out), "--json", str(data)]
        assert main(["eval", Model.name, *flags]) == 0
    assert "toy/word-model on" in capsys.readouterr().out
    found = json.loads(data.read_text())
    first, second = found["scores"]
    assert main(["compare", found["files"][first], found["files"][second]]) == 0


def test_urls_and_flags_that_do_not_go_together(capsys):
    from octavo.cli import main

    assert urls_of("http://a:1/v1, https://b/base/") == ["http://a:1", "https://b/base"]
    for given in ("http://", "http://a:x", "http://a,b", "http://key@a", "http://a,http://a/v1", "http://a?b"):
        with pytest.raises(BadValue):
            urls_of(given)
    for flags, said in (
        (["http://a", "--device", "cpu"], "--device is for a model in process"),
        (["http://a", "--url", "http://b"], "--url http://b with the model http://a"),
        (["http://a", "--concurrency", "0"], "concurrency: 0"),
    ):
        assert main(["eval", *flags, "--task", "piqa"]) == 2
        assert said in capsys.readouterr().err
