"""The operations, a folder each: contract and choice, the reference that defines it, fast versions beside it."""
