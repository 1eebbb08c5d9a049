"""Every module says what is public, and everything it says is there."""

import importlib
import importlib.util
import pkgutil
import types

import pytest

import octavo

NEEDS = {"triton", "lm_eval"}
"""packages that only some machines have; modules that cannot load without them are skipped by name"""


def module_names() -> list[str]:
    return ["octavo", *(found.name for found in pkgutil.walk_packages(octavo.__path__, "octavo."))]


def load(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in NEEDS:
            pytest.skip(f"{name} needs {error.name}")
        raise


@pytest.mark.parametrize("name", module_names())
def test_all_is_true(name):
    module = load(name)
    if not hasattr(module, "__all__"):
        # a package that is only a folder of modules defines nothing
        own = [key for key, value in vars(module).items() if not key.startswith("_") and not is_module(value)]
        assert hasattr(module, "__path__") and not own, f"{name} has no __all__ but defines {own}"
        return
    assert len(set(module.__all__)) == len(module.__all__), f"{name}.__all__ repeats itself"
    for public in module.__all__:
        assert not public.startswith("_") or public == "__version__"
        assert hasattr(module, public), f"{name}.__all__ names {public}, which is not there"


def is_module(value: object) -> bool:
    return isinstance(value, types.ModuleType)


def test_walk_found_the_layers():
    names = set(module_names())
    assert {"octavo.base.table", "octavo.kv.plan", "octavo.memory.law", "octavo.cli.plan"} <= names
