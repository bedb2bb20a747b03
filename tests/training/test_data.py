"""Batches: every token and item once per epoch, the same for any division of the work, nothing seen across borders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network.head import IGNORED
from model.network.transformer import ModelConfig, Transformer
from model.training.data import Ramp, WindowBatches, plan_steps, visit
from model.training.packing import PackedBatches, PairBatches, best_fit, join_sequences, lay_out

BYTES = np.arange(100, dtype=np.float32)
EOT = 7
FOUR = Ramp(4, 4)


def windows(
    tokens: int = 1000, window: int = 16, epochs: float = 1, batch: Ramp = FOUR, row: Ramp | None = None
) -> WindowBatches:
    stream = np.arange(tokens, dtype=np.uint16) % 90
    total = round(epochs * ((tokens - 1) // window))
    plan = plan_steps(total, batch, row or Ramp(window, window))
    return WindowBatches(stream, plan, window, 3, BYTES, EOT)


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 60), st.integers(1, 20))
@settings(deadline=None)
def test_a_walk_does_not_depend_on_how_it_is_cut(count: int, start: int, size: int, cut: int) -> None:
    whole = visit(5, start, size, count)
    parts = [visit(5, start + i, min(cut, size - i), count) for i in range(0, size, cut)]
    assert np.array_equal(whole, np.concatenate(parts))


@given(st.integers(1, 50), st.integers(0, 5))
@settings(deadline=None)
def test_an_epoch_visits_each_item_once(count: int, epoch: int) -> None:
    assert sorted(visit(1, epoch * count, count, count)) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(visit(seed, epoch * 30, 30, 30)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_every_token_is_a_label_once_per_epoch() -> None:
    batches = windows(tokens=16 * 20 + 1)
    seen = [i * 16 + 1 + k for step in range(5) for i in batches.items(step) for k in range(16)]
    assert sorted(seen) == list(range(1, 16 * 20 + 1))


def test_labels_are_the_next_tokens_and_documents_begin_at_endoftext() -> None:
    batch = windows().batch(np.array([0, 3]), 0)
    assert np.array_equal(batch.labels[:, :-1], batch.input_ids[:, 1:])
    assert batch.document_ids is not None
    assert batch.document_ids[0].tolist() == [0] * EOT + [1] * (16 - EOT)
    assert batch.label_bytes.tolist() == BYTES[batch.labels].sum(1).tolist()


def test_a_length_ramp_changes_rows_but_not_tokens() -> None:
    plain, ramped = windows(epochs=2), windows(epochs=2, row=Ramp(4, 16, 0.5))
    shapes = []
    for step in range(30):
        items = plain.items(step)
        assert np.array_equal(items, ramped.items(step))
        a, b = plain.batch(items, step), ramped.batch(items, step)
        assert np.array_equal(a.input_ids.reshape(-1), b.input_ids.reshape(-1))
        assert np.array_equal(a.labels.reshape(-1), b.labels.reshape(-1))
        shapes.append(b.input_ids.shape[1])
    assert shapes == sorted(shapes) and set(shapes) == {4, 8, 16}


def test_a_batch_ramp_continues_the_same_walk() -> None:
    ramped = windows(epochs=1, batch=Ramp(1, 4, 0.5))
    sizes = [len(ramped.items(step)) for step in range(ramped._plan.steps)]
    assert sizes[0] == 1 and sizes[-1] == 4 and sizes == sorted(sizes)
    walk = np.concatenate([ramped.items(step) for step in range(len(sizes))])
    assert np.array_equal(walk, visit(3, 0, len(walk), ramped.windows))


def test_a_ramp_that_does_not_double_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Ramp(3, 16, 0.5)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one window"):
        windows(tokens=16)


@given(st.lists(st.integers(0, 20), max_size=60))
def test_best_fit_places_each_once_and_never_overflows(sizes: list[int]) -> None:
    bins = best_fit(sizes, 20)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in b) <= 20 for b in bins)
    # No two bins could have been one: that is what best fit promises of any pair.
    assert all(sum(sizes[i] for i in a + b) > 20 for n, a in enumerate(bins) for b in bins[:n])


def some_sequences(count: int = 9, seed: int = 0) -> tuple[list[list[int]], list[list[bool]]]:
    random = np.random.default_rng(seed)
    ids = [random.integers(0, 90, random.integers(3, 15)).tolist() for _ in range(count)]
    return ids, [[bool(i >= len(s) // 2) for i in range(len(s))] for s in ids]


def test_packed_rows_learn_the_masked_tokens_and_nothing_else() -> None:
    ids, masks = some_sequences()
    batches = PackedBatches(join_sequences(ids, masks), 16, 2, 0, BYTES)
    batch = batches.batch(np.arange(len(batches.rows)), 0)
    learnt = sorted(batch.labels[batch.labels != IGNORED].tolist())
    assert learnt == sorted(t for s, m in zip(ids, masks) for t, own in list(zip(s, m))[1:] if own)
    assert batches.weight(np.arange(len(batches.rows))) == len(learnt)


def test_packing_changes_no_hidden_state() -> None:
    config = ModelConfig(
        vocab_size=100, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=32,
        context_length=32,
    )  # fmt: skip
    model = Transformer(config)
    model.initialize(1, output_projections="depth")
    ids, masks = some_sequences()
    sequences = join_sequences(ids, masks)
    rows = best_fit(sequences.positions.tolist(), 16)
    batch = lay_out(sequences, rows, 16, BYTES).tensors(torch.device("cpu"))
    with torch.no_grad():
        packed = model.hidden(
            batch["input_ids"], position_ids=batch["position_ids"], document_ids=batch["document_ids"]
        )
        for slot, index in enumerate(i for row in rows for i in row):
            alone = model.hidden(torch.tensor([ids[index][:-1]]))
            torch.testing.assert_close(packed[batch["sequence_ids"] == slot], alone[0], atol=1e-5, rtol=1e-4)


def test_pairs_stay_pairs_however_they_are_packed() -> None:
    ids, masks = some_sequences(12)
    sequences = join_sequences(ids, masks)
    reference = np.arange(12, dtype=np.float32)
    batches = PairBatches(sequences, reference, 16, 4, 0)
    items = np.array([4, 0, 3])
    batch = batches.batch(items, 0)
    assert batch.sequence_ids is not None and batch.reference_log_probs is not None and batch.label_counts is not None
    for slot, index in enumerate([8, 9, 0, 1, 6, 7]):
        here = batch.sequence_ids == slot
        assert batch.input_ids[here].tolist() == ids[index][:-1]
        assert (batch.labels[here] != IGNORED).sum() == batch.label_counts[slot] == sum(masks[index][1:])
        assert batch.reference_log_probs[slot] == index
