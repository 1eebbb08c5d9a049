"""Other libraries' kernels, with stand-ins that take what theirs are declared to take."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks.kernels import Case
from benchmarks.peers.attention import PEERS, measure

CASE = Case("bf16", 3, 2, 2, 512, 32)


def gathered(q, keys, values, tables, contexts):
    """Attention of one token, `[B, H, D]`, over pages `[pages, tokens, G, D]`."""
    out = []
    for one, pages, length in zip(q, tables.long(), contexts.tolist(), strict=True):
        k, v = (side[pages].float().flatten(0, 1)[:length] for side in (keys, values))
        k, v = (side.repeat_interleave(len(one) // side.shape[1], 1) for side in (k, v))
        weights = (torch.einsum("hd,thd->ht", one.float(), k) * one.shape[-1] ** -0.5).softmax(-1)
        out.append(torch.einsum("ht,thd->hd", weights, v))
    return torch.stack(out)


class Wrapper:
    """FlashInfer's: planned for lengths and pages, then run."""

    def __init__(self, workspace, layout, *, use_cuda_graph, use_tensor_cores, paged_kv_indptr_buffer,
                 paged_kv_indices_buffer, paged_kv_last_page_len_buffer):  # fmt: skip
        assert layout == "NHD" and len(paged_kv_indptr_buffer) == len(paged_kv_last_page_len_buffer) + 1

    def plan(self, starts, pages, last, heads, kv_heads, head_dim, page_tokens, *, q_data_type, kv_data_type):
        assert (heads, kv_heads, head_dim) == (4, 2, 32) and q_data_type == torch.bfloat16
        per_context = starts.diff()
        self.tables = pages.view(len(last), -1)
        self.contexts = (per_context - 1) * page_tokens + last

    def run(self, q, cache):
        return gathered(q, *cache, self.tables, self.contexts).to(q.dtype)


def with_kvcache(q, k_cache, v_cache, *, cache_seqlens, causal, page_table=None, block_table=None):
    assert causal and q.shape[1] == 1 and k_cache.shape[1] == (64 if block_table is None else 256)
    tables = page_table if block_table is None else block_table
    return gathered(q[:, 0], k_cache, v_cache, tables, cache_seqlens).unsqueeze(1).to(torch.bfloat16)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "flashinfer": {"BatchDecodeWithPagedKVCacheWrapper": Wrapper},
        "flash_attn_interface": {"flash_attn_with_kvcache": with_kvcache},
        "flash_attn": {"flash_attn_with_kvcache": with_kvcache},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_a_peer_is_compared_and_timed(libraries, peer, dtype: str):
    if dtype not in peer.dtypes:
        pytest.skip("not of its types")
    assert peer.installed
    found = measure(peer, replace(CASE, dtype=dtype), "cpu", 1e10, 1 << 18)
    assert found["peer"] == peer.name and found["microseconds"] > 0
    assert found["relative_error"] < (4e-3 if dtype == "bf16" else 6e-2)
    assert found["share_of_ceiling"] == pytest.approx(found["gb_per_s"] / 10, abs=0.02)


def test_what_is_wrong_or_refused_is_not_timed(libraries, monkeypatch):
    third = PEERS[2]
    wrong = SimpleNamespace(flash_attn_with_kvcache=lambda q, *given, **more: with_kvcache(q, *given, **more) * 1.1)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", wrong)
    found = measure(third, CASE, "cpu", 1e10, 1 << 18)
    assert found["wrong"] == pytest.approx(0.1, abs=0.01) and "microseconds" not in found
    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace())
    assert "AttributeError" in measure(third, CASE, "cpu", 1e10, 1 << 18)["refused"]
