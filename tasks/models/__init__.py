"""Folders of weights: written, read, quantized, talked to and exported."""
