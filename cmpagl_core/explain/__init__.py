"""Explanations: fusion cross-attention per word, and the share of the global window per stage."""
