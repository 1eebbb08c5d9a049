"""Calibration: from a corpus to the plan and the parameters of a quantized KV cache."""

__all__: list[str] = []
