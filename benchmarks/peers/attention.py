"""Other libraries' decode attention over the same shapes: `python -m benchmarks.peers.attention --out FILE`.

FlashInfer (its plain kernel and that for tensor cores), FlashAttention 3 and 2, whichever are installed; one new token
a sequence, pages of 64 tokens (FlashAttention 2: 256). What each gives is compared with attention in fp32 over the same
numbers before it is timed, as `kernels.py` times ours. fp8 keys and values are read with q in bf16 by FlashInfer and
with q in fp8 by FlashAttention 3, which loses more. Not tested: none of them was at hand. Called as their sources
declare: flashinfer/decode.py, hopper/flash_attn_interface.py, flash_attn/flash_attn_interface.py.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import Case, attention_cases, read_ceiling, seconds_of
from benchmarks.report import Report

__all__ = ["PEERS", "Paged", "Peer", "main", "measure"]

KINDS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
ROTATED_BYTES = 1 << 30  # together the caches of one case are at least this long
WITHIN = {"bf16": 1e-2, "fp8": 6e-2}
"""relative error of the whole result, that of q in fp8 included"""


@dataclass(frozen=True)
class Paged:
    """Contexts of one length on pages in shuffled order."""

    case: Case
    page_tokens: int
    tables: Tensor
    """int32 `[B, pages of a context]`"""
    contexts: Tensor
    """int32 `[B]`"""

    @classmethod
    def of(cls, case: Case, page_tokens: int, device: str) -> "Paged":
        pages = case.batch * (case.context // page_tokens)
        tables = torch.randperm(pages, device=device).to(torch.int32).view(case.batch, -1)
        return cls(case, page_tokens, tables, torch.full((case.batch,), case.context, dtype=torch.int32, device=device))

    def cache(self) -> tuple[Tensor, Tensor]:
        """Random keys and values `[pages, page tokens, KV heads, head width]`."""
        shape = (self.tables.numel(), self.page_tokens, self.case.kv_heads, self.case.head_dim)
        kind, device = KINDS[self.case.dtype], self.tables.device
        keys, values = (torch.randn(shape, device=device, dtype=torch.bfloat16).to(kind) for _ in range(2))
        return keys, values

    def exact(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """fp32 `[B, H, D]`, a sequence at a time."""
        case, out = self.case, torch.empty(q.shape, device=q.device)
        for one, pages in enumerate(self.tables.long()):
            k, v = (side[pages].float().flatten(0, 1).repeat_interleave(case.group, 1) for side in (keys, values))
            weights = (torch.einsum("hd,thd->ht", q[one].float(), k) * case.head_dim**-0.5).softmax(-1)
            out[one] = torch.einsum("ht,thd->hd", weights, v)
        return out


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q bf16 `[B, H, D]`, keys and values of a cache -> `[B, H, D]`"""


@dataclass(frozen=True)
class Peer:
    """`make` brings up the kernel for contexts laid out so."""

    name: str
    package: str
    make: Callable[[Paged], Attend]
    dtypes: tuple[str, ...] = ("bf16", "fp8")
    page_tokens: int = 64

    @property
    def installed(self) -> bool:
        return self.package in sys.modules or find_spec(self.package) is not None


def _flashinfer(paged: Paged, tensor_cores: bool) -> Attend:
    import flashinfer  # pyright: ignore[reportMissingImports]

    case, device = paged.case, paged.tables.device
    per_context = paged.tables.shape[1]
    starts = torch.arange(case.batch + 1, dtype=torch.int32, device=device) * per_context
    last = torch.full((case.batch,), paged.page_tokens, dtype=torch.int32, device=device)
    pages = paged.tables.flatten()
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=device), "NHD", use_cuda_graph=True,
        use_tensor_cores=tensor_cores, paged_kv_indptr_buffer=starts.clone(), paged_kv_indices_buffer=pages.clone(),
        paged_kv_last_page_len_buffer=last.clone(),
    )  # fmt: skip
    wrapper.plan(
        starts, pages, last, case.kv_heads * case.group, case.kv_heads, case.head_dim, paged.page_tokens,
        q_data_type=torch.bfloat16, kv_data_type=KINDS[case.dtype],
    )  # fmt: skip
    return lambda q, keys, values: wrapper.run(q, (keys, values))


def _flash_attention_3(paged: Paged) -> Attend:
    import flash_attn_interface  # pyright: ignore[reportMissingImports]

    kind = KINDS[paged.case.dtype]

    def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return flash_attn_interface.flash_attn_with_kvcache(
            q.unsqueeze(1).to(kind), keys, values, cache_seqlens=paged.contexts, page_table=paged.tables, causal=True
        )[:, 0]

    return attend


def _flash_attention_2(paged: Paged) -> Attend:
    import flash_attn  # pyright: ignore[reportMissingImports]

    def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return flash_attn.flash_attn_with_kvcache(
            q.unsqueeze(1), keys, values, cache_seqlens=paged.contexts, block_table=paged.tables, causal=True
        )[:, 0]

    return attend


PEERS = (
    Peer("FlashInfer", "flashinfer", partial(_flashinfer, tensor_cores=False)),
    Peer("FlashInfer, tensor cores", "flashinfer", partial(_flashinfer, tensor_cores=True)),
    Peer("FlashAttention 3", "flash_attn_interface", _flash_attention_3),
    Peer("FlashAttention 2", "flash_attn", _flash_attention_2, ("bf16",), 256),
)


def measure(peer: Peer, case: Case, device: str, ceiling: float, rotated_bytes: int = ROTATED_BYTES) -> dict[str, Any]:
    """Microseconds and share of the read ceiling; or why there are none: the kernel refused, or gave something else."""
    found: dict[str, Any] = {"peer": peer.name, **vars(case)}
    paged = Paged.of(case, peer.page_tokens, device)
    count = max(1, -(-rotated_bytes // case.must_read_bytes()))
    caches = [paged.cache() for _ in range(min(count, 64))]
    q = torch.randn(case.batch, case.kv_heads * case.group, case.head_dim, device=device, dtype=torch.bfloat16)
    try:
        attend = peer.make(paged)
        got = attend(q, *caches[0])
    except Exception as error:  # whatever a library says of a shape that it does not take
        return found | {"refused": f"{type(error).__name__}: {error}"[:300]}
    want = paged.exact(q, *caches[0])
    off = ((got.float() - want).norm() / want.norm()).item()
    if not off < WITHIN[case.dtype]:
        return found | {"wrong": off}
    runs = [partial(attend, q, *cache) for cache in caches]
    seconds = seconds_of(runs * max(1, 8 // len(runs)), device)
    speed = case.must_read_bytes() / seconds
    return found | {
        "microseconds": round(seconds * 1e6, 2), "relative_error": off, "gb_per_s": round(speed / 1e9, 1),
        "share_of_ceiling": round(speed / ceiling, 4),
    }  # fmt: skip


def sweep(device: str, ceiling: float, contexts: list[int]) -> Iterator[dict[str, Any]]:
    """Every case that a peer knows, of each that is installed."""
    for peer in PEERS:
        if not peer.installed:
            print(f"{peer.name}: {peer.package} is not installed")
            continue
        for case in attention_cases(device == "cpu", peer.dtypes, contexts):
            if case.dtype in peer.dtypes:
                yield measure(peer, case, device, ceiling)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 8192])
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ceiling = read_ceiling(device)
    versions = {peer.package: _version(peer.package) for peer in PEERS if peer.installed}
    report = Report(given.out, device, ceiling, versions=versions)
    for row in sweep(device, ceiling, given.contexts):
        print(row, flush=True)
        report.add(row)
    report.write()
    return 0


def _version(package: str) -> str:
    names = {"flashinfer": "flashinfer-python", "flash_attn_interface": "flash_attn_3", "flash_attn": "flash-attn"}
    try:
        return version(names[package])
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
