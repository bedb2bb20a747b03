"""The key-value (KV) cache of a layer: of the positions it has read, so that the next need not read them again."""

import torch
from torch import Tensor

_FIRST_CAPACITY = 256  # positions of a fresh cache; it doubles when full, so growing costs less than reading


class Past:
    """Keys and values of one layer, for texts that grow together: (batch, kv_heads, positions, head_dim) each."""

    def __init__(self, limit: int) -> None:
        """limit: the most positions that there will be."""
        self.length = 0
        self._limit = limit
        self._kept: Tensor | None = None  # (2, batch, kv_heads, capacity, head_dim)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Remember more positions; the keys and values of all."""
        stop = self.length + keys.shape[2]
        kept = self._kept = self._with_room(stop, keys)
        here = slice(self.length, stop)
        kept[0, :, :, here], kept[1, :, :, here] = keys, values
        self.length = stop
        return kept[0, :, :, :stop], kept[1, :, :, :stop]

    def truncate(self, length: int) -> None:
        """Forget all positions but the first `length`."""
        self.length = min(self.length, length)

    def _with_room(self, length: int, keys: Tensor) -> Tensor:
        capacity = 0 if self._kept is None else self._kept.shape[3]
        if self._kept is not None and length <= capacity:
            return self._kept
        batch, kv_heads, _, head_dim = keys.shape
        grown = min(max(length, 2 * capacity, _FIRST_CAPACITY), max(length, self._limit))
        room = torch.empty(2, batch, kv_heads, grown, head_dim, dtype=keys.dtype, device=keys.device)
        if self._kept is not None:
            room[:, :, :, : self.length] = self._kept[:, :, :, : self.length]
        return room
