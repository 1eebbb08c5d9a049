"""Decode inputs by torch, tensor by tensor."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.kernels.inputs import DecodeInputs

__all__ = ["bring"]


def bring(given: "DecodeInputs", into: "DecodeInputs", size: int) -> None:
    count = len(given.tokens)
    into.tokens[:count].copy_(given.tokens)
    into.positions[:count].copy_(given.positions)
    into.slots[:count].copy_(given.slots)
    into.context[:count].copy_(given.context)
    into.tables[:count, : given.tables.shape[1]].copy_(given.tables)
    if count < size:
        into.slots[count:size].fill_(-1)
        into.context[count:size].fill_(1)
