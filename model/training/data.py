"""Which tokens a training step sees: a pure function of (seed, step), however many processes share the step.

So a resumed run continues exactly, a curve does not depend on the number of processes, and which steps saw a document
can be computed afterwards. Here are the order of items, the size of steps and the windows of pretraining; packed
sequences of SFT and DPO are in packing.py.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows of tokens for the model; every array is (rows, seq) unless said, and absent ones take the default."""

    input_ids: Ints
    labels: Ints  # the token to predict at each position, IGNORED where nothing is learnt
    label_bytes: NDArray[np.float32]  # (rows,): bytes of text that the labels stand for
    position_ids: Ints | None = None
    document_ids: Ints | None = None  # intra-document causal masking: a token attends to its own document only
    sequence_ids: Ints | None = None  # index of the packed sequence a position belongs to, -1 in padding
    reference_log_probs: NDArray[np.float32] | None = None  # (sequences,): summed, under the reference model
    label_counts: Ints | None = None  # (sequences,): labels that each packed sequence has
    source_ids: Ints | None = None  # index of the source that a label belongs to
    source_bytes: NDArray[np.float32] | None = None  # (rows, sources): bytes of text that the labels of each stand for

    @property
    def positions(self) -> int:
        """Positions that are not padding."""
        return self.input_ids.size if self.sequence_ids is None else int((self.sequence_ids >= 0).sum())

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """The arrays that are there, on `device`."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: torch.from_numpy(v).to(device, non_blocking=True) for k, v in arrays.items() if v is not None}


class Batches(Protocol):
    """What the loop asks of its data. An item is whatever is drawn: a window of text, a packed row, a pair."""

    def items(self, step: int) -> Ints:
        """The items of the whole batch at `step`, over all processes."""

    def batch(self, items: Ints, step: int) -> Batch:
        """The rows of some of the step's items."""

    def weight(self, items: Ints) -> float:
        """What the summed loss of these items is divided by: labels, or pairs."""

    def tokens(self, items: Ints) -> int:
        """Tokens (labels) that these items train on, for the throughput."""

    @property
    def item_tokens(self) -> int:
        """The most positions that one item takes in the model."""


def stream(seed: int, index: int) -> np.random.Generator:
    """The random stream number `index` of a seed; counter-based, so streams are independent and need no state."""
    return np.random.Generator(np.random.Philox(key=[seed, index]))


# A step across the end of an epoch needs two of them.
@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> Ints:
    """The order in which epoch number `epoch` visits `count` items: each once."""
    order = stream(seed, epoch).permutation(count)
    order.setflags(write=False)  # shared by all who ask for it
    return order


def visit(seed: int, start: int, size: int, count: int) -> Ints:
    """Items number start .. start + size - 1 of an endless walk over `count` items, a fresh permutation each epoch."""
    epochs, offsets = np.divmod(np.arange(start, start + size, dtype=np.int64), count)
    out = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = epoch_order(seed, int(epoch), count)[offsets[here]]
    return out


@dataclass(frozen=True)
class Ramp:
    """A size that doubles from `start` to `end` in equal shares of the first `fraction` of training."""

    start: int
    end: int
    fraction: float = 0.0

    def __post_init__(self) -> None:
        ratio = self.end / self.start
        if ratio < 1 or ratio != 2 ** round(np.log2(ratio)):
            raise ValueError(f"A ramp doubles: {self.end} must be {self.start} times a power of two.")

    def at(self, progress: float) -> int:
        """The size when a share `progress` of training is done."""
        doublings = round(np.log2(self.end / self.start))
        if progress >= self.fraction:
            return self.end
        return min(self.end, self.start << int(progress / self.fraction * doublings))

    def total(self, steps: int) -> float:
        """What `steps` steps of this size take in all, where progress is the share of that."""
        doublings = round(np.log2(self.end / self.start))
        if not doublings:
            return steps * self.end
        ramped = sum(self.fraction / doublings / (self.start << k) for k in range(doublings))
        total: float = steps / (ramped + (1 - self.fraction) / self.end)
        return total


@dataclass(frozen=True)
class StepPlan:
    """How much each step takes: windows of text per step, and the length they are cut to."""

    first_window: Ints  # (steps + 1,): windows taken before each step
    row_length: Ints  # (steps,): tokens of a row

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.row_length)


def plan_steps(windows: float, batch: Ramp, row: Ramp, steps: int = 0) -> StepPlan:
    """Take about `windows` windows in batches of `batch` windows, cut into rows of `row` tokens.

    Where `steps` are given, exactly so many; `batch.total(steps)` windows are about what they take.
    """
    taken: list[int] = [0]
    lengths: list[int] = []
    while len(lengths) < steps if steps else taken[-1] < windows:
        progress = taken[-1] / windows
        lengths.append(row.at(progress))
        taken.append(taken[-1] + batch.at(progress))
    return StepPlan(np.array(taken, dtype=np.int64), np.array(lengths, dtype=np.int64))


def fixed_rows(length: int) -> StepPlan:
    """The plan of those who ask for rows themselves: every window is one row of `length`."""
    return plan_steps(1, Ramp(1, 1), Ramp(length, length))


@dataclass(frozen=True)
class TokenSources:
    """Which source each token of a stream is from: run i ends before token ends[i] and belongs to names[owners[i]]."""

    names: tuple[str, ...]
    ends: Ints  # ascending
    owners: Ints

    def of(self, positions: Ints) -> Ints:
        """Indices of the sources of the tokens at these positions, in the shape of `positions`."""
        return self.owners[np.searchsorted(self.ends, positions, side="right")]  # a run ends before its end


class WindowBatches:
    """Pretraining: consecutive windows of a token stream, each once per epoch; every token is a label once.

    A sequence-length ramp cuts each window into shorter rows, so it never changes which tokens a step sees.
    """

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        plan: StepPlan,
        window: int,
        seed: int,
        token_bytes: NDArray[np.float32],
        endoftext_id: int = -1,
        sources: TokenSources | None = None,
    ) -> None:
        """tokens: (tokens,), may be a memory map. A given `endoftext_id` keeps attention inside each document; given
        `sources`, batches tell whose each label is.
        """
        self.windows = (len(tokens) - 1) // window  # the last token is a label only
        if self.windows < 1:
            raise ValueError(
                f"The text has {len(tokens)} tokens, less than one window of {window} + 1. Give more text."
            )
        self._tokens, self._plan, self._window, self._seed = tokens, plan, window, seed
        self._token_bytes, self._endoftext_id, self._sources = token_bytes, endoftext_id, sources

    def items(self, step: int) -> Ints:
        first, last = self._plan.first_window[step : step + 2]
        return visit(self._seed, int(first), int(last - first), self.windows)

    def batch(self, items: Ints, step: int) -> Batch:
        return self.rows(items, int(self._plan.row_length[step]))

    def rows(self, items: Ints, length: int) -> Batch:
        """The windows `items`, cut into rows of `length`."""
        spans = np.stack([self._tokens[i * self._window : (i + 1) * self._window + 1] for i in items]).astype(np.int64)
        inputs, labels = spans[:, :-1].reshape(-1, length), spans[:, 1:].reshape(-1, length)
        # <|endoftext|> opens the document after it, as it does when the model is prompted.
        documents = (inputs == self._endoftext_id).cumsum(1) if self._endoftext_id >= 0 else None
        sizes = self._token_bytes[labels]
        batch = Batch(inputs.copy(), labels.copy(), sizes.sum(1), document_ids=documents)
        return batch if self._sources is None else self._with_sources(batch, items, sizes, self._sources)

    def _with_sources(self, batch: Batch, items: Ints, sizes: NDArray[np.float32], sources: TokenSources) -> Batch:
        owners = sources.of(items[:, None] * self._window + np.arange(1, self._window + 1)).reshape(sizes.shape)
        by_source = [np.where(owners == source, sizes, 0).sum(1) for source in range(len(sources.names))]
        return replace(batch, source_ids=owners, source_bytes=np.stack(by_source, axis=1))

    def spread(self, max_tokens: int) -> Ints:
        """Windows spread evenly over the stream: as many as `max_tokens` allow, one at least."""
        count = min(self.windows, max(1, max_tokens // self._window))
        return np.arange(count, dtype=np.int64) * self.windows // count

    def weight(self, items: Ints) -> float:
        return float(self.tokens(items))

    def tokens(self, items: Ints) -> int:
        return len(items) * self._window

    @property
    def item_tokens(self) -> int:
        return self._window
