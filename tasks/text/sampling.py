"""Choosing rows by the hash in their id, so that the choice does not depend on order, workers or luck."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def first_of_each(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Indices of the first row of each id, ascending."""
    seen: dict[str, int] = {}
    for index, identifier in enumerate(ids.to_pylist()):
        seen.setdefault(identifier, index)
    return np.fromiter(seen.values(), np.int64, len(seen))


def smallest_hashes(ids: pa.ChunkedArray, count: int) -> NDArray[np.int64]:
    """Indices, ascending, of the `count` rows whose ids (32 hex digits) are smallest; all rows if there are fewer."""
    # Half of the 128 bits: what a uint64 holds.
    hashes = np.array([int(identifier[:16], 16) for identifier in ids.to_pylist()], np.uint64)
    return np.sort(np.argsort(hashes, kind="stable")[:count])
