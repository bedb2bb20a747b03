"""`precision: auto` is the fastest arithmetic of the processor, and none that the stage or its strategy refuses."""

from typing import Any

import pytest

from tasks.mechanism.execution import Execution
from tasks.mechanism.machine import processor_features
from tasks.train.dpo import DpoConfig
from tasks.train.precision import ranked_precisions, settle_precision
from tasks.train.pretrain import PretrainConfig
from tasks.train.sft import SftConfig

SAPPHIRE_RAPIDS = frozenset({"avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"})
ZEN_4 = frozenset({"avx512_vnni", "avx512_bf16"})
ICE_LAKE = frozenset({"avx512_vnni"})
HASWELL = frozenset({"avx2", "fma"})


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (SAPPHIRE_RAPIDS, ("bf16", "fp32")),
        (ZEN_4, ("int8", "bf16", "fp32")),
        (ICE_LAKE, ("int8", "fp32")),
        (HASWELL, ("fp32",)),
        (frozenset({"asimd", "bf16"}), ("bf16", "fp32")),
        (frozenset(), ("fp32",)),
    ],
)
def test_precisions_of_processors(features: frozenset[str], expected: tuple[str, ...]) -> None:
    assert ranked_precisions(features, on_gpu=False) == expected
    assert ranked_precisions(features, on_gpu=True) == ("bf16", "fp32")


@pytest.mark.parametrize(
    ("config", "execution", "features", "expected"),
    [
        (PretrainConfig, {}, ICE_LAKE, "int8"),
        (DpoConfig, {}, ICE_LAKE, "fp32"),  # policy and reference must round alike
        (DpoConfig, {}, ZEN_4, "bf16"),
        (SftConfig, {"compile": "layers"}, ZEN_4, "bf16"),
        (SftConfig, {"compile": "layers"}, ICE_LAKE, "fp32"),
        (SftConfig, {"strategy": "deepspeed", "processes": 2}, ZEN_4, "bf16"),
        (PretrainConfig, {"device": "cuda"}, ICE_LAKE, "bf16"),
    ],
)
def test_what_auto_becomes(config: Any, execution: dict[str, Any], features: frozenset[str], expected: str) -> None:
    where = Execution(**{"device": "cpu", **execution})
    assert settle_precision(config(precision="auto"), where, features).precision == expected
    assert settle_precision(config(precision="fp32"), where, features).precision == "fp32"


def test_this_processor_has_one() -> None:
    ranked = ranked_precisions(processor_features(), on_gpu=False)
    assert ranked[-1] == "fp32" and len(set(ranked)) == len(ranked)
