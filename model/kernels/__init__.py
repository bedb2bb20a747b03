"""Compiled kernels: rows, INT8, FP4 and attention by blocks, each with plain code that says what it computes."""
