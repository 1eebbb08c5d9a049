"""The engine: requests in, tokens out. Continuous batching over the paged cache."""
