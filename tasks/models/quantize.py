"""Post-training quantization of the weights to 8 or 4 bits: packed on disk, and loaded and run as packed."""

from typing import Literal

from pydantic import Field

from model.quantization.formats import FORMATS, FormatName
from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage


class QuantizeConfig(StageConfig):
    """The format and how the codes are found."""

    format: FormatName = Field(
        "int8",
        description="Format of the layers' matrices: "
        + "; ".join(
            f"{name}, {found.summary}, {found.bits_per_weight:g} bits a weight" for name, found in FORMATS.items()
        )
        + ". Embedding and LM head stay int8.",
    )
    # INT8 of a 5M model: perplexity +0.002 % by GPTQ, +0.013 % to nearest; NVFP4: +0.14 % against +0.33 %
    # (docs/LOG.md, 2026-11-22).
    method: Literal["gptq", "nearest"] = Field(
        "gptq", description="gptq: least error of a layer's outputs on calibration text; nearest: round to nearest."
    )
    # NVFP4 of a 5M model: KL 0.0011 with 8k tokens as with 33k, where rounding to nearest has 0.0027 (docs/LOG.md).
    calibration_tokens: int = Field(
        16_384, ge=1024, le=16_777_216, description="Calibration tokens for GPTQ, of the training text."
    )
    calibration_length: int = Field(256, ge=16, le=65536, description="Sequence length of the calibration text.")
    # GPTQ's own (arXiv:2210.17323: 1 % of the mean).
    damping: float = Field(
        0.01, gt=0, le=1, description="GPTQ's damping: share of the mean of the Hessian's diagonal that is added to it."
    )
    seed: int = Field(0, ge=0, description="Seed of the sample of calibration text.")


@stage("quantize", version=1, rebuild="on-version", figures=("size_bytes", "size_ratio"))
def quantize(run: StageRun, cfg: QuantizeConfig, model: Artifact, calibration: Artifact) -> None:
    """Write `weights.safetensors`, `quantization.json` and copies of config, tokenizer and contract.

    `calibration` is the tokens artifact.

    Raises:
        ValueError: the tokens were made by another tokenizer, or are fewer than one row.
    """
    import torch

    from model.quantization.calibrate import quantize_calibrated, quantize_to_nearest
    from tasks.models.folder import load_model, save_quantized, weights_bytes
    from tasks.tokens.contract import check_contract
    from tasks.tokens.files import random_rows

    check_contract(model.path, calibration.path)
    # Of the execution, not of the config: the same bytes come with any number (tests/models/test_quantize.py).
    torch.set_num_threads(run.execution.threads)
    transformer = load_model(model.path)
    weight_format = FORMATS[cfg.format]
    if cfg.method == "gptq":
        length = min(cfg.calibration_length, transformer.config.context_length)
        rows = random_rows(calibration.path, "train", max(1, cfg.calibration_tokens // length), length, cfg.seed)
        with run.progress("quantize", transformer.config.num_layers, "layers") as bar:
            quantize_calibrated(transformer, weight_format, torch.from_numpy(rows), cfg.damping, lambda: bar.advance(1))
        run.metric("calibration_tokens", rows.size)
    else:
        quantize_to_nearest(transformer, weight_format)
    save_quantized(run.out, model.path, transformer, {"format": cfg.format, "method": cfg.method})
    size = weights_bytes(run.out)
    run.metric("size_bytes", size)
    run.metric("size_ratio", weights_bytes(model.path) / size)
