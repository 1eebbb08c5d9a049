"""What plans without acting is arithmetic: these modules load no torch, no Numba and no transformers."""

import subprocess
import sys

import pytest

PURE = [
    "octavo.base.device",
    "octavo.base.log",
    "octavo.cli",
    "octavo.calibrate.pareto",
    "octavo.cli.plan",
    "octavo.cli.plan_asset",
    "octavo.engine.limits",
    "octavo.engine.pool_size",
    "octavo.engine.scheduler",
    "octavo.kernels.choice",
    "octavo.kv.layout",
    "octavo.kv.pages",
    "octavo.kv.plan",
    "octavo.kv.prefix",
    "octavo.kv.schemes",
    "octavo.memory.law",
    "octavo.memory.report",
    "octavo.memory.shapes",
    "octavo.memory.tables",
    "octavo.models.families",
    "octavo.models.spec",
]
HEAVY = ("torch", "numba", "transformers", "matplotlib")


@pytest.mark.parametrize("module", PURE)
def test_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
