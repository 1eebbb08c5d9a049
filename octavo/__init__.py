"""Octavo: an LLM serving engine whose KV cache is folded to 8 bits or fewer, and which proves what that cost.

The public names load on first use, so that `import octavo` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.engine.async_llm import AsyncLLM
    from octavo.engine.llm import LLM, Completion, RequestOutput
    from octavo.engine.sampling import SamplingParams

__all__ = ["LLM", "AsyncLLM", "Completion", "RequestOutput", "SamplingParams", "__version__"]

__version__ = "0.1.0"

_HOMES = {
    "LLM": "octavo.engine.llm",
    "Completion": "octavo.engine.llm",
    "RequestOutput": "octavo.engine.llm",
    "AsyncLLM": "octavo.engine.async_llm",
    "SamplingParams": "octavo.engine.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
