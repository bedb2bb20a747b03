"""The gate on evaluations whose truth is known: who is better, who is within limits, and what is said."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from flows.graph import gate_terms
from flows.recipe import Recipe
from model.scoring.interval import Interval, judge, paired_difference, proportion
from tasks.evaluation.gate import GateConfig, gate
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tests.helpers.training import artifact

DOCUMENTS = 60


def evaluation(
    folder: Path, shift: float = 0.0, noise: float = 0.0, seed: int = 0, prefix: str = "doc", margins: Any = None
) -> Artifact:
    """An evaluation whose nats per byte are those of the documents, plus `shift`, plus `noise` of its own."""
    folder.mkdir(parents=True)
    difficulty = np.random.default_rng(99)
    sizes = difficulty.integers(100, 3000, DOCUMENTS)
    per_byte = difficulty.uniform(0.5, 1.5, DOCUMENTS) + shift + noise * np.random.default_rng(seed).normal(size=60)
    table = {
        "doc_id": [f"{prefix}{i}" for i in range(DOCUMENTS)],
        "source": ["s"] * DOCUMENTS,
        "nll_nats": sizes * per_byte,
        "tokens": sizes // 3,
        "bytes": sizes,
    }
    pq.write_table(pa.table(table), folder / "documents.parquet")
    if margins is not None:
        pq.write_table(pa.table({"margin_over_reference": np.asarray(margins, float)}), folder / "preferences.parquet")
    figure = float((sizes * per_byte).sum() / np.log(2) / sizes.sum())
    (folder / "scores.json").write_text(json.dumps({"val_bits_per_byte": figure}))
    return artifact(folder)


@pytest.fixture
def evaluations(tmp_path: Path) -> dict[str, Artifact]:
    """A good run: quantized forms are near, and most rewards have the right sign."""
    return {
        "base": evaluation(tmp_path / "base", 0.2),
        "sft": evaluation(tmp_path / "sft", 0.01),
        "dpo": evaluation(tmp_path / "dpo", margins=[1.0] * 80 + [-1.0] * 20),
        "int8": evaluation(tmp_path / "int8", 0.0001, 0.0001, seed=1),
        "fp4": evaluation(tmp_path / "fp4", 0.002, 0.002, seed=2),
    }


def verdict_of(
    inputs: Mapping[str, Artifact], execution: Execution, config: GateConfig | None = None
) -> dict[str, Any]:
    built = build(gate, gate_terms(Recipe(gate=config or GateConfig())), inputs, execution)
    found: dict[str, Any] = json.loads((built.path / "verdict.json").read_bytes())
    return found


def test_the_first_is_promoted(evaluations: dict[str, Artifact], execution: Execution) -> None:
    found = verdict_of(evaluations, execution)
    assert found["verdict"] == "first"
    assert found["promote"] is True
    assert found["reason"].startswith("Promoted: There is no champion yet.")
    assert {check["name"] for check in found["checks"]} == {"int8", "fp4", "dpo", "reward_accuracy"}
    assert found["bits_per_byte"].keys() == evaluations.keys()


@pytest.mark.parametrize(
    ("shift", "noise", "verdict", "promote"),
    [(0.05, 0.01, "better", True), (-0.05, 0.01, "worse", False), (0.0, 0.1, "inconclusive", False)],
)
def test_against_a_champion(
    tmp_path: Path,
    evaluations: dict[str, Artifact],
    execution: Execution,
    shift: float,
    noise: float,
    verdict: str,
    promote: bool,
) -> None:
    champion = evaluation(tmp_path / "champion", shift, noise, seed=3)
    found = verdict_of({**evaluations, "incumbent": champion}, execution)
    assert found["verdict"] == verdict
    assert found["promote"] is promote
    comparison = found["comparison"]
    assert comparison["low"] <= comparison["difference"] <= comparison["high"]
    assert comparison["documents"] == DOCUMENTS
    if noise < 0.1:
        assert comparison["difference"] == pytest.approx(-shift / np.log(2), abs=0.01)


def test_a_sure_small_gain_beats_a_large_unsure_one(
    tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution
) -> None:
    sure = evaluation(tmp_path / "sure", 0.002, 0.0005, seed=3)
    unsure = evaluation(tmp_path / "unsure", 0.02, 0.3, seed=1)
    assert verdict_of({**evaluations, "incumbent": sure}, execution)["verdict"] == "better"
    assert verdict_of({**evaluations, "incumbent": unsure}, execution)["verdict"] == "inconclusive"


def test_inconclusive_may_be_told_to_promote(
    tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution
) -> None:
    champion = evaluation(tmp_path / "champion", 0.0, 0.1, seed=3)
    found = verdict_of({**evaluations, "incumbent": champion}, execution, GateConfig(inconclusive="promote"))
    assert found["verdict"] == "inconclusive"
    assert found["promote"] is True


def test_only_shared_documents_are_compared(
    tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution
) -> None:
    stranger = evaluation(tmp_path / "stranger", 5.0, prefix="other")
    found = verdict_of({**evaluations, "incumbent": stranger}, execution)
    assert found["verdict"] == "inconclusive"
    assert "share 0 scored documents" in found["reason"]


def test_limits_decline_a_better_model(tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution) -> None:
    champion = evaluation(tmp_path / "champion", 0.05, 0.01, seed=3)
    bad = {
        "int8": evaluation(tmp_path / "bad8", 0.02),
        "fp4": evaluation(tmp_path / "bad4", 0.1),
        "sft": evaluation(tmp_path / "bad_sft", -0.3),
        "dpo": evaluation(tmp_path / "bad_dpo", margins=[1.0] * 55 + [-1.0] * 45),
    }
    names = {
        "int8": "int8 changes",
        "fp4": "fp4 changes",
        "sft": "dpo changes the perplexity of sft",
        "dpo": "better answer likelier in 55.0% of 100 pairs",
    }
    for name, worse in bad.items():
        found = verdict_of({**evaluations, "incumbent": champion, name: worse}, execution)
        assert found["verdict"] == "better"
        assert found["promote"] is False
        assert found["reason"].startswith("Declined: Better than the champion")
        assert names[name] in found["reason"]
        assert sum(not check["passed"] for check in found["checks"]) == 1


def test_a_limit_within_the_noise_is_not_passed(
    tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution
) -> None:
    noisy = evaluation(tmp_path / "noisy", 0.0, 0.05, seed=8)
    found = verdict_of({**evaluations, "int8": noisy}, execution)
    check = next(check for check in found["checks"] if check["name"] == "int8")
    assert abs(check["value"]) < 0.05 and check["high"] > 0.01
    assert not check["passed"]


def test_perplexity_increase_is_per_token(
    tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution
) -> None:
    found = verdict_of({**evaluations, "fp4": evaluation(tmp_path / "constant", 0.01)}, execution)
    check = next(check for check in found["checks"] if check["name"] == "fp4")
    assert check["value"] == pytest.approx(np.expm1(0.03), rel=0.02)  # three bytes a token


def test_without_rewards_there_is_no_check_of_them(
    tmp_path: Path, evaluations: dict[str, Artifact], execution: Execution
) -> None:
    found = verdict_of({**evaluations, "dpo": evaluation(tmp_path / "plain")}, execution)
    assert "reward_accuracy" not in {check["name"] for check in found["checks"]}


def test_the_same_question_gets_the_same_bytes(tmp_path: Path, evaluations: dict[str, Artifact]) -> None:
    inputs = {**evaluations, "incumbent": evaluation(tmp_path / "champion", 0.05, 0.1, seed=3)}
    built = [build(gate, gate_terms(Recipe()), inputs, Execution(home=tmp_path / name)) for name in ("a", "b")]
    assert built[0].digest == built[1].digest


def test_bootstrap_equals_scipy() -> None:
    random = np.random.default_rng(0)
    candidate, incumbent, sizes = random.gamma(3, 50, 80), random.gamma(3, 50, 80), random.integers(50, 500, 80)
    found = paired_difference(candidate, incumbent, sizes.astype(float), 0.9, 20_000, 0)

    def statistic(a: Any, b: Any, w: Any, axis: int = -1) -> Any:
        return (a - b).sum(axis) / w.sum(axis)

    expected = scipy.stats.bootstrap(
        (candidate, incumbent, sizes), statistic, paired=True, confidence_level=0.9, n_resamples=20_000,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.estimate == pytest.approx(statistic(candidate, incumbent, sizes))
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        sizes = random.integers(100, 1000, 60).astype(float)
        candidate = sizes * (1.0 + random.normal(0, 0.1, 60))
        found = paired_difference(candidate, sizes, sizes, 0.9, 400, 0)
        covered += found.low <= 0 <= found.high
    assert 160 <= covered <= 196  # 180 expected, standard deviation 4; the percentile method is a little narrow


@pytest.mark.parametrize(("successes", "trials"), [(0, 8), (8, 8), (55, 100), (1, 3)])
def test_wilson_equals_scipy(successes: int, trials: int) -> None:
    found = proportion(successes, trials, 0.95)
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_judgement() -> None:
    assert judge(Interval(-0.2, -0.3, -0.1)) == "better"
    assert judge(Interval(0.2, 0.1, 0.3)) == "worse"
    assert judge(Interval(-0.2, -0.5, 0.0)) == "inconclusive"
