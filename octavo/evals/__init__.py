"""The proof: what a cache did to a model, measured against the same model with another cache."""
