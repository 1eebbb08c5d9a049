"""Bytes by arithmetic: the memory law, shapes of known models, and the report of the verb `plan`. No torch."""
