"""Weights in few bits: formats, the search for the best codes, and layers over packed weights."""
