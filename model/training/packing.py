"""Sequences of their own length packed into rows: conversations for SFT, pairs of answers for DPO."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.network.head import IGNORED
from model.training.data import Batch, Ints, visit


@dataclass(frozen=True)
class Sequences:
    """Token sequences end to end: sequence i is ids[starts[i]:starts[i + 1]]."""

    ids: NDArray[np.int32]
    learnt: NDArray[np.bool_]  # of the length of ids: whether the model is to learn the token
    starts: Ints  # (sequences + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def positions(self) -> Ints:
        """(sequences,): positions that each takes in the model; the last token is only ever a label."""
        return np.diff(self.starts) - 1

    def label_counts(self) -> Ints:
        """(sequences,): tokens to learn in each; the first of a sequence is never predicted."""
        total = np.concatenate([[0], np.cumsum(self.learnt)])
        counts = total[self.starts[1:]] - total[self.starts[:-1]]
        return np.asarray(counts - self.learnt[self.starts[:-1]], dtype=np.int64)


def join_sequences(ids: Sequence[Sequence[int]], learnt: Sequence[Sequence[bool]]) -> Sequences:
    """Lay sequences end to end."""
    starts = np.concatenate([[0], np.cumsum([len(s) for s in ids])]).astype(np.int64)
    flat = np.fromiter((token for s in ids for token in s), dtype=np.int32, count=int(starts[-1]))
    mask = np.fromiter((m for s in learnt for m in s), dtype=np.bool_, count=int(starts[-1]))
    return Sequences(flat, mask, starts)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put things of these sizes into bins: largest first, each into the fullest bin that still takes it."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (space left, bin), ascending
    # Equal sizes by their index, so that the bins are the same each time.
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[index]
        assert size <= capacity, f"{size} does not fit into {capacity}"
        place = bisect_left(free, (size, -1))  # -1 stands before every bin of that space
        if place == len(free):
            bins.append([])
            space, chosen = capacity, len(bins) - 1
        else:
            space, chosen = free.pop(place)
        bins[chosen].append(index)
        insort(free, (space - size, chosen))
    return [sorted(b) for b in bins]


def lay_out(sequences: Sequences, rows: Sequence[Sequence[int]], width: int, token_bytes: NDArray[np.float32]) -> Batch:
    """Rows that hold the sequences named in each, one after the other, none of which sees another.

    `sequence_ids` count the sequences in the order in which `rows` names them.
    """
    shape = (len(rows), width)
    inputs, positions, documents = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    labels, owners = np.full(shape, IGNORED, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    owner = 0
    for r, row in enumerate(rows):
        at = 0
        for document, s in enumerate(row):
            start, stop = sequences.starts[s], sequences.starts[s + 1]
            size = int(stop - start - 1)
            here = slice(at, at + size)
            inputs[r, here] = sequences.ids[start : stop - 1]
            following = sequences.ids[start + 1 : stop]
            labels[r, here] = np.where(sequences.learnt[start + 1 : stop], following, IGNORED)
            positions[r, here] = np.arange(size)
            documents[r, here] = document
            owners[r, here] = owner
            at, owner = at + size, owner + 1
        documents[r, at:] = len(row)  # padding is a document of its own
    sizes = np.where(labels == IGNORED, 0, token_bytes[np.maximum(labels, 0)]).sum(1, dtype=np.float32)
    return Batch(inputs, labels, sizes, positions, documents, owners)


class PackedBatches:
    """SFT: sequences packed into rows once, the rows visited in a fresh permutation each epoch."""

    def __init__(
        self, sequences: Sequences, row_length: int, rows_per_batch: int, seed: int, token_bytes: NDArray[np.float32]
    ) -> None:
        self.rows = best_fit(sequences.positions.tolist(), row_length)
        if not self.rows:
            raise ValueError("There is nothing to learn: no sequence has a token that the model should predict.")
        counts = sequences.label_counts()
        self.labels_per_row = np.array([counts[row].sum() for row in self.rows], dtype=np.int64)
        self._sequences, self._length, self._seed = sequences, row_length, seed
        self._rows_per_batch, self._token_bytes = rows_per_batch, token_bytes

    def items(self, step: int) -> Ints:
        return visit(self._seed, step * self._rows_per_batch, self._rows_per_batch, len(self.rows))

    def batch(self, items: Ints, step: int) -> Batch:
        return lay_out(self._sequences, [self.rows[i] for i in items], self._length, self._token_bytes)

    def weight(self, items: Ints) -> float:
        return float(max(self.tokens(items), 1))

    def tokens(self, items: Ints) -> int:
        return int(self.labels_per_row[items].sum())

    @property
    def item_tokens(self) -> int:
        return self._length


class PairBatches:
    """DPO: pairs, of which sequence 2i is the chosen and 2i + 1 the rejected answer, in a permutation each epoch."""

    def __init__(
        self,
        sequences: Sequences,
        reference_log_probs: NDArray[np.float32] | None,
        row_length: int,
        pairs_per_batch: int,
        seed: int,
    ) -> None:
        """reference_log_probs: (sequences,), summed over each answer; None while they are being computed."""
        if len(sequences) < 2:
            raise ValueError("There are no preference pairs to learn from.")
        self._sequences, self._length, self._seed = sequences, row_length, seed
        self._pairs_per_batch, self._reference = pairs_per_batch, reference_log_probs
        self._counts = sequences.label_counts()
        self._no_bytes = np.zeros(int(sequences.ids.max()) + 1, dtype=np.float32)

    def items(self, step: int) -> Ints:
        return visit(self._seed, step * self._pairs_per_batch, self._pairs_per_batch, len(self._sequences) // 2)

    def batch(self, items: Ints, step: int) -> Batch:
        """Sequence 2j and 2j + 1 of the batch are the chosen and rejected answer of items[j]."""
        members = np.stack([2 * items, 2 * items + 1], axis=1).reshape(-1)
        rows = best_fit(self._sequences.positions[members].tolist(), self._length)
        packed = lay_out(self._sequences, [members[row].tolist() for row in rows], self._length, self._no_bytes)
        assert packed.sequence_ids is not None
        order = np.array([slot for row in rows for slot in row] + [-1], dtype=np.int64)  # -1 is padding's owner
        # Rows end where the fullest does: padding would be computed like tokens.
        used = int((packed.sequence_ids >= 0).sum(1).max())
        trimmed = [
            a[:, :used].copy() if a is not None else None
            for a in (packed.input_ids, packed.labels, packed.position_ids, packed.document_ids)
        ]
        inputs, labels, positions, documents = trimmed
        assert inputs is not None and labels is not None
        return Batch(
            inputs,
            labels,
            packed.label_bytes,
            positions,
            documents,
            order[packed.sequence_ids[:, :used]],
            None if self._reference is None else self._reference[members],
            self._counts[members],
        )

    def weight(self, items: Ints) -> float:
        return float(len(items))

    def tokens(self, items: Ints) -> int:
        return int(self._counts[2 * items].sum() + self._counts[2 * items + 1].sum())

    @property
    def item_tokens(self) -> int:
        return 2 * self._length  # both answers
