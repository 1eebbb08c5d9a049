"""The verb `env`: what this machine has, and which kernels would run on it."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclopts import Parameter
from rich.table import Table

from octavo.base import device
from octavo.base.units import format_bytes
from octavo.cli.output import JsonTarget, check_json_target, emit

__all__ = ["EnvOptions", "env", "environment"]

_PACKAGES = ("octavo", "torch", "triton", "numba", "numpy", "transformers", "tokenizers", "safetensors", "gguf")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    json: JsonTarget = None


_NO_OPTIONS = EnvOptions()


def env(options: EnvOptions = _NO_OPTIONS) -> None:
    """What this machine has: versions, cores, memory, devices, kernels."""
    check_json_target(options.json)
    found = environment()
    emit(found, _render(found), options.json)


def environment() -> dict[str, Any]:
    """Everything `octavo env` says, as plain values; None is "not there"."""
    chosen = device.default_device()
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": {
            "model": device.cpu_model(),
            "physical_cores": device.physical_cores(),
            "logical_cpus": os.cpu_count(),
            "bf16": device.cpu_has_bf16(),
        },
        "memory": {
            "total_bytes": device.total_memory_bytes(),
            "available_bytes": device.available_memory_bytes(),
        },
        "devices": _accelerators(),
        "default_device": chosen,
        "kernels": _kernels(chosen),
        "caches": {"hugging_face": str(_hub_cache()), "numba": os.environ.get("NUMBA_CACHE_DIR")},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = f"cuda:{index}"
        free, total = device.device_memory(name)
        major, minor = torch.cuda.get_device_capability(index)
        found.append(
            {
                "device": name,
                "name": torch.cuda.get_device_name(index),
                "capability": f"{major}.{minor}",
                "free_bytes": free,
                "total_bytes": total,
            }
        )
    return found


def _kernels(chosen: str) -> dict[str, dict[str, str | None]]:
    """Per scheme, the implementation that `auto` takes on the default device, and why if it is not the fast one."""
    from octavo.kernels.choice import choose
    from octavo.kv.plan import uniform_plan
    from octavo.kv.schemes import SCHEMES

    choices = {name: choose("auto", chosen, uniform_plan(name, layers=1, head_dim=128)) for name in SCHEMES}
    return {name: {"impl": choice.impl, "why": choice.reason} for name, choice in choices.items()}


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _render(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("platform", f"{found['platform']}, Python {found['python']}")
    table.add_row("packages", ", ".join(f"{name} {version or '(none)'}" for name, version in found["packages"].items()))
    cpu, memory = found["cpu"], found["memory"]
    bf16 = "bf16 in hardware" if cpu["bf16"] else "no bf16 in hardware"
    table.add_row("cpu", f"{cpu['model']}, {cpu['physical_cores']} cores ({cpu['logical_cpus']} logical), {bf16}")
    table.add_row(
        "memory", f"{format_bytes(memory['available_bytes'])} free of {format_bytes(memory['total_bytes'])}"
    )  # fmt: skip
    for item in found["devices"]:
        free, total = format_bytes(item["free_bytes"]), format_bytes(item["total_bytes"])
        table.add_row(item["device"], f"{item['name']} (sm {item['capability']}), {free} free of {total}")
    if not found["devices"]:
        table.add_row("devices", "no accelerator that torch can see; the model runs on cpu")
    by_choice: dict[str, list[str]] = {}
    for name, kernel in found["kernels"].items():
        by_choice.setdefault(kernel["impl"] + (f": {kernel['why']}" if kernel["why"] else ""), []).append(name)
    for choice, names in by_choice.items():
        table.add_row("kernels", f"{', '.join(names)}: {choice}")
    caches = found["caches"]
    table.add_row("caches", f"hub {caches['hugging_face']}; numba {caches['numba'] or 'beside the code'}")
    return table
