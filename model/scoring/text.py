"""How well a model predicts text: nats by document, KL divergence from a reference, log-likelihoods of answers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.network.head import IGNORED
from model.network.transformer import Transformer
from model.training.data import Batch
from model.training.objectives import likeliest, sequence_log_probs
from model.training.packing import Sequences, best_fit, join_sequences, lay_out

Floats = NDArray[np.float64]
TokensDone = Callable[[int], object]

CHUNK_POSITIONS = 512  # positions whose two distributions are held at a time


@dataclass(frozen=True)
class Windows:
    """Documents cut into pieces that fit a row. Piece i belongs to document `owners[i]`."""

    sequences: Sequences
    owners: NDArray[np.int64]


def cut_windows(documents: Sequence[NDArray[np.int64]], opening: int, length: int) -> Windows:
    """Cut token documents into windows of at most `length` labels, so that each token is a label once.

    A window opens with the token before it: `opening` (<|endoftext|>, as in training) for the first.
    """
    pieces: list[list[int]] = []
    owners: list[int] = []
    for index, ids in enumerate(documents):
        opened = [opening, *ids.tolist()]
        for start in range(0, len(ids), length):
            pieces.append(opened[start : start + length + 1])
            owners.append(index)
    learnt = [[False] + [True] * (len(piece) - 1) for piece in pieces]  # what opens a window is context alone
    return Windows(join_sequences(pieces, learnt), np.array(owners, dtype=np.int64))


def _batches(sequences: Sequences, length: int, tokens_at_once: int) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
    """The sequences packed into rows; with each batch the indices of its sequences, in the order it counts them."""
    rows = best_fit(sequences.positions.tolist(), length)
    # Fullest rows first would differ with the batch size only in summation, never in what is computed.
    at_once = max(1, tokens_at_once // length)
    no_bytes = np.zeros(int(sequences.ids.max(initial=0)) + 1, dtype=np.float32)
    for start in range(0, len(rows), at_once):
        chosen = rows[start : start + at_once]
        yield (
            lay_out(sequences, chosen, length, no_bytes),
            np.array([index for row in chosen for index in row], dtype=np.int64),
        )


def _hidden(model: Transformer, tensors: dict[str, Tensor]) -> Tensor:
    return model.hidden(
        tensors["input_ids"], position_ids=tensors["position_ids"], document_ids=tensors["document_ids"]
    )


def _passes(
    model: Transformer, sequences: Sequences, length: int, tokens_at_once: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor], Tensor]]:
    """For each batch the indices of its sequences, its tensors, and the model's hidden states."""
    device = model.model.norm.weight.device  # of a norm, which is never packed
    for batch, indices in _batches(sequences, length, tokens_at_once):
        tensors = batch.tensors(device)
        tensors["label_counts"] = torch.empty(len(indices))  # only its length is looked at
        yield indices, tensors, _hidden(model, tensors)


@torch.inference_mode()
def sequence_scores(
    model: Transformer, sequences: Sequences, length: int, tokens_at_once: int, done: TokensDone = lambda _: None
) -> Floats:
    """Summed log-probability in nats of the learnt tokens of each sequence: (sequences,)."""
    found = np.zeros(len(sequences), dtype=np.float64)
    for indices, tensors, hidden in _passes(model, sequences, length, tokens_at_once):
        found[indices] = sequence_log_probs(model, hidden, tensors).double().cpu().numpy()
        done(int((tensors["labels"] != IGNORED).sum()))
    return found


@dataclass(frozen=True)
class AnswerScores:
    """Log-likelihoods of given continuations in nats, and whether greedy decoding would write each of them; both
    (sequences,)."""

    log_probs: Floats
    greedy: NDArray[np.bool_]


@torch.inference_mode()
def answer_scores(model: Transformer, sequences: Sequences, length: int, tokens_at_once: int) -> AnswerScores:
    """`sequence_scores`, and for each sequence whether every learnt token is the likeliest at its place."""
    found = np.zeros(len(sequences), dtype=np.float64)
    hits = np.zeros(len(sequences), dtype=np.int64)
    for indices, tensors, hidden in _passes(model, sequences, length, tokens_at_once):
        found[indices] = sequence_log_probs(model, hidden, tensors).double().cpu().numpy()
        owners = tensors["sequence_ids"][likeliest(hidden, model.head_weight, tensors["labels"])]
        hits[indices] = owners.bincount(minlength=len(indices)).cpu().numpy()
    return AnswerScores(found, hits == sequences.label_counts())


def document_nats(windows: Windows, scores: Floats, documents: int) -> Floats:
    """Nats of each document from the scores of its windows: (documents,)."""
    totals = np.bincount(windows.owners, weights=scores, minlength=documents)
    return -totals.astype(np.float64)


@dataclass(frozen=True)
class Agreement:
    """How near a model is to its reference, per token: KL(reference || model) in nats, and top-1 agreement, the share
    of positions where both have the same likeliest token."""

    scores: Floats  # of the model, as `sequence_scores` gives them
    kl: float
    top1: float


@torch.inference_mode()
def compare_models(
    model: Transformer,
    reference: Transformer,
    sequences: Sequences,
    length: int,
    tokens_at_once: int,
    done: TokensDone = lambda _: None,
) -> Agreement:
    """Score `model` on the sequences and compare its predictions with those of `reference` at every label."""
    device = model.model.norm.weight.device
    found = np.zeros(len(sequences), dtype=np.float64)
    kl, same, labels = 0.0, 0, 0
    weight, reference_weight = model.head_weight, reference.head_weight  # a packed head is dequantised here, once
    for batch, indices in _batches(sequences, length, tokens_at_once):
        tensors = batch.tensors(device)
        tensors["label_counts"] = torch.empty(len(indices))  # only its length is looked at
        hidden, reference_hidden = _hidden(model, tensors), _hidden(reference, tensors)
        found[indices] = sequence_log_probs(model, hidden, tensors).double().cpu().numpy()
        kept = (tensors["labels"].reshape(-1) != IGNORED).nonzero()[:, 0]
        for part in kept.split(CHUNK_POSITIONS):  # type: ignore[no-untyped-call]
            ours = F.log_softmax(hidden.flatten(0, 1)[part] @ weight.T, dim=-1)
            theirs = F.log_softmax(reference_hidden.flatten(0, 1)[part] @ reference_weight.T, dim=-1)
            kl += float(F.kl_div(ours, theirs, log_target=True, reduction="sum"))
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        labels += len(kept)
        done(len(kept))
    return Agreement(found, kl / max(labels, 1), same / max(labels, 1))


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Nats over a text of so many bytes as bits per byte."""
    return nats / math.log(2) / text_bytes
