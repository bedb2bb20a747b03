"""Mixtures: each component has its share at any time, and a mixed batch is the components' own rows, no more."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network.head import IGNORED
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.data import WindowBatches, fixed_rows
from model.training.mixture import Component, MixedBatches
from model.training.objectives import NextToken
from model.training.packing import PackedBatches, join_sequences

LENGTH, VOCAB, ENDOFTEXT = 16, 50, 3
BYTES = np.arange(VOCAB, dtype=np.float32)
CONFIG = ModelConfig(
    vocab_size=VOCAB, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=32,
    context_length=LENGTH,
)  # fmt: skip


def packed() -> PackedBatches:
    random = np.random.default_rng(1)
    ids = [random.integers(4, VOCAB, size).tolist() for size in random.integers(3, LENGTH, 30)]
    learnt = [[i >= len(one) // 2 for i in range(len(one))] for one in ids]
    return PackedBatches(join_sequences(ids, learnt), LENGTH, 1, 0, BYTES)


def windows() -> WindowBatches:
    tokens = np.random.default_rng(2).integers(3, VOCAB, 40 * LENGTH + 1).astype(np.uint16)
    return WindowBatches(tokens, fixed_rows(LENGTH), LENGTH, 0, BYTES, ENDOFTEXT)


def mixed(share: float = 0.3, weight: float = 1.0, rows: int = 8, seed: int = 5) -> MixedBatches:
    answers, text = packed(), windows()
    components = [
        Component("answers", answers, len(answers.rows)),
        Component("text", text, text.windows, share, weight),
    ]
    return MixedBatches(components, rows, seed)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.9), st.integers(1, 64), st.integers(0, 2**31))
def test_each_has_its_share_at_any_time(share: float, rows: int, seed: int) -> None:
    batches = mixed(share, rows=rows, seed=seed)
    first_text = batches.offsets[1]
    seen: list[int] = []
    for step in range(20):
        items = batches.items(step)
        assert len(items) == rows and np.array_equal(items, batches.items(step))
        seen += items.tolist()
        assert abs(sum(item >= first_text for item in seen) - share * len(seen)) < 1


def test_every_row_is_visited_once_an_epoch() -> None:
    batches, answers = mixed(), len(packed().rows)
    drawn = [i for step in range(100) for i in batches.items(step).tolist()]
    own, text = [i for i in drawn if i < answers], [i - answers for i in drawn if i >= answers]
    assert sorted(own[:answers]) == list(range(answers)) and sorted(text[:40]) == list(range(40))
    assert own[:answers] != own[answers : 2 * answers]  # in another order each time


def test_a_batch_is_the_rows_of_its_components() -> None:
    batches, answers, text = mixed(), packed(), windows()
    items = batches.items(3)
    count = len(answers.rows)
    batch = batches.batch(items, 3)
    assert batch.position_ids is not None and batch.document_ids is not None and batch.source_ids is not None
    for row, item in enumerate(items):
        own = answers.batch(np.array([item]), 0) if item < count else text.batch(np.array([item - count]), 0)
        assert np.array_equal(batch.input_ids[row], own.input_ids[0])
        assert np.array_equal(batch.labels[row], own.labels[0])
        assert own.document_ids is not None and np.array_equal(batch.document_ids[row], own.document_ids[0])
        positions = np.arange(LENGTH) if own.position_ids is None else own.position_ids[0]
        assert np.array_equal(batch.position_ids[row], positions)
        assert set(batch.source_ids[row]) == {int(item >= count)}
        assert batch.label_bytes[row] == own.label_bytes[0]
    assert batches.tokens(items) == int((batch.labels != IGNORED).sum())
    padding = int(sum((answers.batch(np.array([i]), 0).sequence_ids == -1).sum() for i in items if i < count))  # type: ignore[union-attr]
    assert batch.positions == batch.input_ids.size - padding


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_the_loss_is_the_weighted_sum_of_the_components(weight: float) -> None:
    """As torch's cross-entropy gives it on each component by itself, its gradient too; sums are unweighted."""
    batches = mixed(weight=weight)
    items = batches.items(0)
    transformer = Transformer(CONFIG)
    transformer.initialize(0)
    batch = batches.batch(items, 0).tensors(torch.device("cpu"))
    found, sums = NextToken(transformer, sources=("answers", "text"), weights=(1.0, weight)).train()(batch)
    found.backward()
    gradients = {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()

    logits = transformer(batch["input_ids"], position_ids=batch["position_ids"], document_ids=batch["document_ids"])
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="none"
    )
    text = batch["source_ids"].flatten() == 1
    expected = nats[~text].sum() + weight * nats[text].sum()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in transformer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)
    named = dict(zip(NextToken(transformer, sources=("answers", "text")).names, sums.tolist(), strict=True))
    assert named["nll"] == pytest.approx(nats.sum().item(), rel=1e-5)
    assert named["nll/text"] == pytest.approx(nats[text].sum().item(), rel=1e-5)
    assert named["labels/answers"] + weight * named["labels/text"] == pytest.approx(batches.weight(items))


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_figures_do_not_depend_on_how_a_step_is_divided(parts: int) -> None:
    batches = mixed()
    items = batches.items(1)
    transformer = Transformer(CONFIG)
    transformer.initialize(0)
    objective = NextToken(transformer, sources=("answers", "text")).eval()

    def measured(some: Any) -> torch.Tensor:
        with torch.no_grad():
            return objective(batches.batch(some, 1).tensors(torch.device("cpu")))[1].double()

    total = sum(measured(part) for part in np.array_split(items, parts))
    torch.testing.assert_close(total, measured(items), rtol=1e-5, atol=1e-4)
