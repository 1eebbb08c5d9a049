"""The machine as its files describe it: other machines are shown under a folder."""

from pathlib import Path

import pytest

from octavo.base import device

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """`machine({"proc/meminfo": "..."})` writes files and returns the root to look under."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


MEMINFO = f"MemTotal: {32 * 2**20} kB\nMemFree: 1000 kB\nMemAvailable: {20 * 2**20} kB\n"


def test_memory_without_a_cgroup(machine):
    root = machine({"proc/meminfo": MEMINFO})
    assert device.available_memory_bytes(root) == 20 * GIB
    assert device.total_memory_bytes(root) == 32 * GIB


def test_cgroup_v2_limits_of_the_group_and_its_parents(machine):
    root = machine(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pods/one\n",
            "sys/fs/cgroup/pods/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pods/memory.current": f"{6 * GIB}\n",
            "sys/fs/cgroup/pods/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            "sys/fs/cgroup/pods/one/memory.max": "max\n",
            "sys/fs/cgroup/pods/one/memory.current": f"{GIB}\n",
        }
    )
    assert device.available_memory_bytes(root) == 3 * GIB  # 8 - 6, and the file cache can be dropped
    assert device.total_memory_bytes(root) == 8 * GIB


def test_cgroup_v2_seen_from_inside_a_container(machine):
    files = {"sys/fs/cgroup/memory.max": f"{4 * GIB}", "sys/fs/cgroup/memory.current": f"{5 * GIB}"}
    root = machine({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", **files})
    assert device.available_memory_bytes(root) == 0
    assert device.total_memory_bytes(root) == 4 * GIB


def test_cgroup_v1(machine):
    base = "sys/fs/cgroup/memory/docker/abc"
    root = machine(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/\n",
            f"{base}/memory.limit_in_bytes": f"{10 * GIB}",
            f"{base}/memory.usage_in_bytes": f"{4 * GIB}",
            f"{base}/memory.stat": f"total_inactive_file {2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{30 * GIB}",
        }
    )
    assert device.available_memory_bytes(root) == 8 * GIB


def test_memory_of_this_machine():
    free, total = device.device_memory("cpu")
    assert 0 < free <= total


def test_a_machine_without_proc_still_answers(tmp_path):
    assert device.available_memory_bytes(tmp_path) > 0
    assert device.total_memory_bytes(tmp_path) > 0
    assert device.cpu_flags(tmp_path) == frozenset()
    assert not device.cpu_has_bf16(tmp_path)
    assert device.cpu_model(tmp_path)
    assert device.physical_cores(tmp_path) >= 1


def test_hyperthreads_count_once(machine, monkeypatch):
    monkeypatch.setattr(device, "_usable_cpus", lambda: {0, 1, 2, 3})
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    files = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in siblings.items()}
    assert device.physical_cores(machine(files)) == 2


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 4)])
def test_cpu_quota_is_heeded(machine, monkeypatch, quota, cores):
    monkeypatch.setattr(device, "_usable_cpus", lambda: {0, 1, 2, 3})
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert device.physical_cores(root) == cores


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [("flags\t\t: fpu avx2 avx512_bf16\n", True), ("flags : amx_bf16 amx_tile\n", True),
     ("flags : avx2 avx512f\n", False), ("Features : asimd bf16\n", True), ("", False)],
)  # fmt: skip
def test_bf16_flags(machine, cpuinfo, has):
    assert device.cpu_has_bf16(machine({"proc/cpuinfo": cpuinfo})) is has


def test_default_device_is_one_torch_has():
    import torch

    assert device.default_device() == ("cuda" if torch.cuda.is_available() else "cpu")
