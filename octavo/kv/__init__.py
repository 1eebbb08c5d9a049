"""The cache: what a stored vector is (schemes), where it lies (layout, pool), who owns it (pages, prefix)."""
