"""Forecasts scale with the work, widen with what is not known, and never mix units."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.plan import Forecast, Work, forecast, total, work_of
from tasks.mechanism.store import Manifest
from tasks.train.pretrain import PretrainConfig
from tasks.train.sft import SftConfig


def manifest(seconds: float) -> Manifest:
    return Manifest(
        stage="s",
        label="s",
        version=1,
        key="k",
        digest="d",
        config={},
        inputs={},
        code_digest="c",
        metrics={},
        seconds=seconds,
        cpu_seconds=seconds,
        input_bytes=1,
        size_bytes=1,
        created="2026-01-01T00:00:00+00:00",
        environment={},
    )


@given(st.floats(1, 1e6), st.floats(0.1, 1e4), st.floats(0.01, 100))
def test_one_earlier_run_scales_in_proportion(amount: float, seconds: float, factor: float) -> None:
    found = forecast(Work("bytes", amount * factor), [(Work("bytes", amount), manifest(seconds))])
    assert found is not None
    assert found.seconds == pytest.approx(seconds * factor, rel=1e-6)
    assert found.low < found.seconds < found.high


def test_agreeing_runs_narrow_the_interval() -> None:
    past = [(Work("bytes", 100.0), manifest(seconds)) for seconds in (10.0, 10.1, 9.9, 10.05)]
    one = forecast(Work("bytes", 100.0), past[:1])
    four = forecast(Work("bytes", 100.0), past)
    assert one and four
    assert four.high / four.low < one.high / one.low


def test_eighty_percent_interval_covers_about_eighty_percent() -> None:
    """Against simulation: log-normal seconds, three earlier runs."""
    import random

    source = random.Random(0)
    hits = 0
    for _ in range(2000):
        seconds = [math.exp(source.gauss(2, 0.3)) for _ in range(4)]
        found = forecast(Work("b", 1.0), [(Work("b", 1.0), manifest(s)) for s in seconds[:3]])
        assert found
        hits += found.low <= seconds[3] <= found.high
    assert 0.77 < hits / 2000 < 0.83


def test_nothing_is_forecast_from_nothing_or_from_another_unit() -> None:
    assert forecast(Work("bytes", 1.0), []) is None
    assert forecast(Work("bytes", 1.0), [(Work("token-weights", 1.0), manifest(1.0))]) is None


def test_work_of_training_is_tokens_times_weights() -> None:
    def of(config: PretrainConfig | SftConfig) -> Work:
        return work_of(config.model_dump(mode="json"), 50)

    small, wide = ({"model": {"hidden_size": 4 * size}, "batches": {"train_tokens": 1000}} for size in (16, 32))
    assert of(PretrainConfig.model_validate(wide)).amount == 4 * of(PretrainConfig.model_validate(small)).amount
    assert of(PretrainConfig.model_validate(small)).amount == 1000 * 12 * 4 * 64**2
    steps = SftConfig.model_validate({"batches": {"steps": 3, "batch_tokens": 512}})
    assert of(steps) == Work("step-weights", 3 * 512)
    once, twice = (SftConfig.model_validate({"batches": {"epochs": epochs}}) for epochs in (1, 2))
    assert of(twice).amount == 2 * of(once).amount == 100


def test_total_adds_errors_in_quadrature() -> None:
    whole = total([Forecast(10, 7, 13), Forecast(20, 16, 24)])
    assert (whole.seconds, whole.low, whole.high) == (30, 25, 35)
