"""What is kept of a calibration under way, so that one that was interrupted can go on."""

import time
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from octavo.base.log import log

__all__ = ["Partial"]

_KEPT_EVERY_SECONDS = 20.0


class Partial:
    """Running sums of a calibration that was interrupted, kept beside the asset until that is written."""

    def __init__(self, out: Path, key: str):
        self.file, self.key, self.saved = out / "calibration.partial", key, time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Windows done and the observer's state; nothing where there is none, or of another run."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as handle:
                about = handle.metadata() or {}
                if about.get("key") != self.key:
                    return 0, {}
                return int(about["windows"]), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return 0, {}

    def save(self, done: int, state: dict[str, Tensor]) -> None:
        if time.monotonic() - self.saved < _KEPT_EVERY_SECONDS:
            return
        from safetensors.torch import save_file

        self.saved = time.monotonic()
        new = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(state, new, metadata={"key": self.key, "windows": str(done)})
            new.replace(self.file)
        except Exception as error:  # it can still end well: only going on after an interruption is lost
            with suppress(OSError):
                new.unlink()
            log.warning("cannot keep the state of this calibration: %s", error)

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
