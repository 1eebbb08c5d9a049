"""The only file that asks what hardware exists. Torch is imported late, and only to ask about accelerators.

Functions that read the system's files take `root`, so that tests can show them another machine.
"""

import math
import os
import platform
from pathlib import Path

__all__ = [
    "available_memory_bytes",
    "cpu_flags",
    "cpu_has_bf16",
    "cpu_model",
    "default_device",
    "device_memory",
    "physical_cores",
    "process_memory_bytes",
    "total_memory_bytes",
]

_ROOT = Path("/")


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _whole_number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _meminfo(field: str, root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_folders(controller: str, root: Path) -> list[Path]:
    """Folders that may limit this process, its own group and every parent: v2's tree, or v1's of one controller."""
    folders: list[Path] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = base / path.lstrip("/")
        while group != base and base in group.parents:
            folders.append(group)
            group = group.parent
        folders.append(base)
    return folders


def _limits(root: Path) -> list[tuple[int, int]]:
    """`(limit, bytes in use that cannot be reclaimed)` of every memory cgroup around this process that has a limit."""
    found = []
    for folder in _cgroup_folders("memory", root):
        for limit_name, used_name, file_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _whole_number(folder / limit_name), _whole_number(folder / used_name)
            if limit is not None and used is not None and limit < 2**60:  # v1 writes "no limit" as about 2^63
                stat = dict(line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
                found.append((limit, max(used - int(stat.get(file_name, 0)), 0)))
    return found


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Bytes of host memory that can still be taken: the least of MemAvailable and every cgroup's headroom."""
    system = _meminfo("MemAvailable", root)
    if system is None:
        system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no /proc: half of what there is
    return min([system, *(max(limit - used, 0) for limit, used in _limits(root))])


def total_memory_bytes(root: Path = _ROOT) -> int:
    """Bytes of host memory that this process may ever have: what is installed, or the tightest cgroup limit."""
    system = _meminfo("MemTotal", root) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([system, *(limit for limit, _ in _limits(root))])


def process_memory_bytes(root: Path = _ROOT) -> int | None:
    """Bytes of memory that back this process now (VmRSS), files that it maps included; None where the system has no
    /proc to say it."""
    for line in (_read(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpu_quota(root: Path) -> float:
    """CPUs that the cgroups grant, infinity where they set no quota."""
    quota = math.inf
    for folder in _cgroup_folders("cpu", root):
        words = (_read(folder / "cpu.max") or "").split()
        if len(words) == 2 and words[0].isdigit():
            quota = min(quota, int(words[0]) / int(words[1]))
        micros, period = _whole_number(folder / "cpu.cfs_quota_us"), _whole_number(folder / "cpu.cfs_period_us")
        if micros and period:
            quota = min(quota, micros / period)
    return quota


def physical_cores(root: Path = _ROOT) -> int:
    """Cores this process may use: hyperthreads of one core count once, affinity and cgroup quota are heeded."""
    cpus = _usable_cpus()
    siblings = {cpu: _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    cores = len({text or str(cpu) for cpu, text in siblings.items()})
    return max(1, math.ceil(min(cores, _cpu_quota(root))))


def _cpuinfo(field: str, root: Path) -> str | None:
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def cpu_model(root: Path = _ROOT) -> str:
    return _cpuinfo("model name", root) or platform.processor() or platform.machine()


def cpu_flags(root: Path = _ROOT) -> frozenset[str]:
    """Instruction-set flags as the kernel names them; empty where it does not say."""
    return frozenset((_cpuinfo("flags", root) or _cpuinfo("Features", root) or "").split())


def cpu_has_bf16(root: Path = _ROOT) -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; False where unknown."""
    return bool(cpu_flags(root) & {"avx512_bf16", "amx_bf16", "bf16"})


def default_device() -> str:
    """`cuda` if torch sees one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_memory(device: str) -> tuple[int, int]:
    """`(free, total)` bytes of a device's memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)
    return available_memory_bytes(), total_memory_bytes()
