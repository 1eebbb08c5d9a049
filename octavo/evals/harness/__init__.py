"""Octavo as a model of lm-evaluation-harness. `model` needs the package lm_eval; nothing else here does."""
