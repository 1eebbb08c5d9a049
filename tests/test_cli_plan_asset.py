"""`octavo plan` with a calibration: its plan, and plans solved from it, without its numbers and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.kv.layout import PageLayout
from octavo.kv.schemes import SCHEMES

LAYERS, HEADS, WIDTH = 3, 2, 16
LLAMA = {
    "model_type": "llama", "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": LAYERS, "vocab_size": 320,
    "num_attention_heads": 6, "num_key_value_heads": HEADS, "max_position_embeddings": 512,
}  # fmt: skip
SENSITIVITY = {
    "schemes": ["int8", "int4"],
    "tokens": 512,
    "k": {"int8": [1e-4, 2e-4, 3e-4], "int4": [3e-2, 1e-3, 2e-2]},
    "v": {"int8": [5e-5, 4e-5, 1e-4], "int4": [4e-3, 2e-3, 1e-2]},
}


def side(scheme: str) -> dict:
    return {"scheme": scheme, "transforms": ["rotation"]}


def write(folder: Path, **changed) -> None:
    """kv_plan.json alone: int8 keys but in the last layer, int4 values."""
    about = {
        "format": 1, "model": "tiny", "fingerprint": "0", "data": {}, "kv_cache_dtype": "auto:5bit",
        "shape": {"layers": LAYERS, "kv_heads": HEADS, "heads": 6, "head_dim": WIDTH},
        "layers": [{"k": side("int4" if n == 2 else "int8"), "v": side("int4")} for n in range(LAYERS)],
        "bytes_per_token": 1.0, "key_bias_stored": False, "static": {}, "params_sha256": "",
        "kl_measured": 0.0123, "kl_predicted": 0.0111, "held_out": "bundled text", "sensitivity": SENSITIVITY,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "kv_plan.json").write_text(json.dumps(about | changed))


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path / "model"


@pytest.fixture
def asset(tmp_path) -> str:
    write(tmp_path / "asset")
    return str(tmp_path / "asset")


def page_bytes(key: str, value: str) -> int:
    return PageLayout(SCHEMES[key], SCHEMES[value], HEADS, WIDTH).page_bytes


def rows(capsys, *words: str) -> dict[str, dict]:
    assert main(["plan", *words, "--json", "-"]) == 0
    return {row["dtype"]: row for row in json.loads(capsys.readouterr().out)["schemes"]}


def refused(capsys, *words: str) -> str:
    assert main(["plan", *words]) == 2
    return capsys.readouterr().err


def test_the_plan_of_an_asset_is_listed_last(model, asset, capsys):
    without, found = rows(capsys, str(model)), rows(capsys, str(model), "--kv-asset", asset)
    assert list(found) == [*without, "asset:auto:5bit"]
    row = found["asset:auto:5bit"]
    assert row["page_bytes"] == 2 * page_bytes("int8", "int4") + page_bytes("int4", "int4")
    assert (row["kl_measured"], row["kl_predicted"]) == (0.0123, 0.0111)
    assert found["int8"]["page_bytes"] > row["page_bytes"] > found["int4"]["page_bytes"]
    assert found["int8"]["sequences_that_fit"] < row["sequences_that_fit"] < found["int4"]["sequences_that_fit"]
    assert "K int4+rotation, V int4+rotation (1 layers)" in row["plan"]
    assert all(found[name] == without[name] and without[name]["kl_measured"] is None for name in without)


def test_people_see_the_same(model, asset, capsys):
    assert main(["plan", str(model), "--kv-asset", asset]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("asset:auto:5bit") and "0.012" in line)
    assert line.split() == ["asset:auto:5bit", "0.012", "0.011"]
    assert "measured on bundled text" in out and "calibrated on tiny" in out
    assert main(["plan", str(model)]) == 0
    assert "KL" not in capsys.readouterr().out


@pytest.mark.parametrize("place", [".", "kv_asset"])
def test_an_asset_beside_the_weights_is_found(model, place, capsys):
    write(model / place)
    for named in (model, model / "config.json"):
        assert "asset:auto:5bit" in rows(capsys, str(named))
    assert "asset:auto:5bit" not in rows(capsys, str(model), "--kv-asset", "off")


def test_budgets_are_solved(model, asset, capsys):
    words = "--kv-cache-dtype auto:kl<0.01 --kv-cache-dtype int4 --kv-cache-dtype auto:1GiB --kv-cache-dtype auto"
    found = rows(capsys, str(model), "--kv-asset", asset, *words.split())
    assert list(found) == ["auto:kl<0.01", "int4", "auto:1GiB", "auto"]
    assert 0 < found["auto:kl<0.01"]["kl_predicted"] <= 0.01
    assert found["auto:kl<0.01"]["kl_measured"] is None and found["int4"]["kl_predicted"] is None
    assert found["int4"]["page_bytes"] < found["auto:kl<0.01"]["page_bytes"] < 3 * page_bytes("int8", "int8")
    assert found["auto:1GiB"]["page_bytes"] == 3 * page_bytes("int8", "int8")  # room for the best there is
    assert found["auto"]["kl_measured"] == 0.0123


def test_a_budget_of_bytes_is_for_so_many_sequences(model, asset, capsys):
    """512 tokens are 8 pages, of which the tightest plan takes `least` bytes."""
    least = 3 * page_bytes("int4", "int4")
    words = [str(model), "--kv-asset", asset, "--kv-cache-dtype", f"auto:{8 * 4 * least + 100}"]
    found = rows(capsys, *words, "--max-num-seqs", "4")
    assert next(iter(found.values()))["page_bytes"] == least
    assert next(iter(rows(capsys, *words, "--max-num-seqs", "2").values()))["page_bytes"] > least
    assert "no plan fits" in refused(capsys, *words, "--max-num-seqs", "5")


def test_wrong_use(model, asset, tmp_path, capsys):
    auto = ["--kv-cache-dtype", "auto:5bit"]
    assert "octavo calibrate --sensitivity" in refused(capsys, str(model), *auto)
    assert "octavo calibrate --sensitivity" in refused(capsys, "llama-7b", *auto)
    assert "octavo calibrate --sensitivity" in refused(capsys, str(model), *auto, "--kv-asset", "off")
    assert "calibrated for" in refused(capsys, "llama-7b", "--kv-asset", asset)
    assert "no KV asset at" in refused(capsys, str(model), "--kv-asset", str(tmp_path / "none"))
    assert "not a budget" in refused(capsys, str(model), "--kv-asset", asset, "--kv-cache-dtype", "auto:much")
    write(tmp_path / "bare", sensitivity=None)
    assert "has no sensitivities" in refused(capsys, str(model), "--kv-asset", str(tmp_path / "bare"), *auto)
    write(tmp_path / "odd", layers=[])
    assert "plans for 0 layers" in refused(capsys, str(model), "--kv-asset", str(tmp_path / "odd"))


def test_nothing_heavy_is_loaded(model, asset):
    words = ["plan", str(model), "--kv-asset", asset, "--kv-cache-dtype", "auto:7bit"]
    code = (
        f"import sys; from octavo.cli import main; code = main({words!r});"
        "print([name for name in ('torch', 'numba', 'matplotlib') if name in sys.modules], file=sys.stderr);"
        "sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr.strip()) == (0, "[]")
