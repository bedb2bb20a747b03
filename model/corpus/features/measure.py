"""Measure every document of a column once; each filter rule is then a comparison with one of these numbers."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.corpus.features.names import FEATURES
from model.corpus.features.plain import measure_plain
from model.kernels.jit import COMPILED

__all__ = ["FEATURES", "measure"]


def measure(texts: pa.LargeStringArray) -> NDArray[np.float32]:
    """Features of each text. (documents, len(FEATURES))"""
    if COMPILED:
        from model.corpus.features.kernel import measure_compiled

        return measure_compiled(texts)
    rows = [measure_plain(text) for text in texts.to_pylist()]
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES)).astype(np.float32)
