"""`precision: auto`: the fastest arithmetic of the processor that a run starts on, settled before any key is made."""

from pathlib import Path
from typing import TypeVar, get_args

from model.network.shape import Precision
from tasks.mechanism.execution import Execution
from tasks.train.job import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)
NVIDIA_DEVICE = Path("/dev/nvidiactl")  # torch takes two seconds to import, for a plan that takes one


def settle_precision(config: C, execution: Execution, features: frozenset[str]) -> C:
    """The config with a precision in the place of `auto`, for a processor with these features; as it is where it names
    one."""
    if config.precision != "auto":
        return config
    allowed = get_args(type(config).model_fields["precision"].annotation)
    ranked = ranked_precisions(features, on_gpu=_uses_gpu(execution))
    # INT8's kernels can neither be compiled nor have their weights gathered (tasks/train/job.py).
    excluded = {"int8"} if execution.compile == "layers" or execution.strategy == "deepspeed" else set()
    chosen = next(one for one in ranked if one in allowed and one not in excluded)
    return config.model_copy(update={"precision": chosen})


def ranked_precisions(features: frozenset[str], on_gpu: bool) -> tuple[Precision, ...]:
    """Precisions by speed, the fastest first, of what a processor with these features (flags of Linux) computes well.

    A training step of 4M parameters, tokens per CPU-second: with AMX bf16 9,510, int8 5,640; without, with VNNI alone,
    int8 is the faster by far, since bf16 is emulated there: 22 GFLOP/s where fp32 has 143 (docs/LOG.md, 2026-11-30).
    """
    if on_gpu:
        return "bf16", "fp32"
    has_bf16 = {"amx_bf16", "avx512_bf16", "bf16"} & features
    has_vnni = {"avx512_vnni", "avx_vnni"} & features
    ranked: list[Precision] = ["int8"] if has_vnni and "amx_bf16" not in features else []
    return (*ranked, "bf16", "fp32") if has_bf16 else (*ranked, "fp32")


def _uses_gpu(execution: Execution) -> bool:
    return execution.device == "cuda" or (execution.device == "auto" and NVIDIA_DEVICE.exists())
