"""Overlap of held-out tokens with training tokens: equal to a search by brute force, and read beside the scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.corpus import overlap
from model.corpus.overlap import RUN_TOKENS, covered_tokens, run_hashes, seen_runs


def brute_force(document: list[int], training: list[int]) -> int:
    runs = {tuple(training[i : i + RUN_TOKENS]) for i in range(len(training) - RUN_TOKENS + 1)}
    covered = set()
    for i in range(len(document) - RUN_TOKENS + 1):
        if tuple(document[i : i + RUN_TOKENS]) in runs:
            covered |= set(range(i, i + RUN_TOKENS))
    return len(covered)


def measured(document: list[int], training: list[int]) -> int:
    ids: NDArray[np.uint32] = np.array(document, np.uint32)
    hashes = run_hashes(ids)
    wanted = np.unique(hashes)
    return covered_tokens(hashes, wanted, seen_runs(wanted, np.array(training, np.uint16)), len(document))


tokens = st.lists(st.integers(0, 2), max_size=60)


@given(document=tokens, training=st.lists(st.integers(0, 2), max_size=400))
@settings(max_examples=200, deadline=None)
def test_equals_a_search_by_brute_force(document: list[int], training: list[int]) -> None:
    assert measured(document, training) == brute_force(document, training)


def test_a_run_across_two_chunks_is_found() -> None:
    training = np.random.default_rng(0).integers(0, 60_000, 3 * overlap._CHUNK // 2).tolist()
    start = overlap._CHUNK - 5
    assert measured(training[start : start + RUN_TOKENS], training) == RUN_TOKENS
    assert measured(training[start : start + RUN_TOKENS - 1], training) == 0


def test_the_compiled_form_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    training = np.random.default_rng(1).integers(0, 3, 20_000).astype(np.uint16)
    wanted = np.unique(run_hashes(training[:300]))
    compiled = seen_runs(wanted, training[200:])
    monkeypatch.setattr(overlap, "COMPILED", False)
    plain = seen_runs(wanted, training[200:])
    assert plain.tolist() == compiled.tolist()
    assert 0 < plain.sum() < len(wanted)
