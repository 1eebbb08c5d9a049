"""Models: one dense decoder driven by a spec, and the table of families that fill the spec in."""
