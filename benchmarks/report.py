"""What a benchmark found: the machine, the command, when, and its rows."""

import json
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

__all__ = ["Report", "machine", "need_gpu"]


def need_gpu() -> None:
    """End a script that times kernels of a GPU alone where they cannot run; before it imports them."""
    missing = [] if torch.cuda.is_available() else ["torch sees no CUDA device"]
    missing += [] if find_spec("triton") else ["triton is not installed (the extra `gpu` brings it)"]
    if missing:
        sys.exit(f"{Path(sys.argv[0]).name} times kernels of a GPU: {', '.join(missing)}")


def machine(device: str) -> dict[str, str]:
    found = {"torch": torch.__version__, "device": "cpu"}
    if device != "cpu":
        import triton

        found |= {"device": torch.cuda.get_device_name(), "triton": triton.__version__}
    return found


class Report:
    """`found` is written to `out`, if given, after each row: a run that is stopped leaves what it has."""

    def __init__(self, out: Path | None, device: str, ceiling: float | None = None, **more: Any):
        """`ceiling`: bytes a second of a kernel that only reads."""
        self.out = out
        self.found: dict[str, Any] = {
            "machine": machine(device),
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if ceiling is not None:
            self.found["read_ceiling_gb_per_s"] = round(ceiling / 1e9, 1)
        self.found |= {**more, "results": []}

    def add(self, row: dict[str, Any]) -> None:
        self.found["results"].append(row)
        self.write()

    def write(self) -> None:
        if self.out is not None:
            self.out.write_text(json.dumps(self.found, indent=1) + "\n")
