"""A quantized model on disk: packed codes and scales, and which matrix is in which format."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.network.transformer import Transformer
from model.quantization.formats import Int8Weight, NVFP4Weight, QuantizedWeight, unpack_nibbles
from model.quantization.packed import packed_layers, replace_weights
from tasks.mechanism.identity import canonical_json
from tasks.models.folder import load_config, load_model
from tasks.tokens.contract import CONTRACT_FILE, copy_tokenizer

WEIGHTS_FILE = "weights.safetensors"
QUANTIZATION_FILE = "quantization.json"
_COPIED = ("config.json", "generation_config.json", CONTRACT_FILE)


def is_quantized(folder: Path) -> bool:
    """Whether the folder holds packed weights."""
    return (folder / QUANTIZATION_FILE).is_file()


def load_any_model(folder: Path) -> Transformer:
    """The model in a folder of either kind; packed weights stay packed.

    Raises:
        ValueError: it is neither.
    """
    return load_quantized(folder) if is_quantized(folder) else load_model(folder)


def save_quantized(folder: Path, source: Path, model: Transformer, settings: Mapping[str, object]) -> None:
    """Write a model with packed layers; config, tokenizer and contract come from `source`, the model it was made of.

    Each packed layer is stored as `<name>.codes` (int8, or two NVFP4 codes a byte, the even column in the low half),
    `<name>.scales` (fp32 by row, or E4M3 bytes by block of 16) and, for NVFP4, `<name>.global_scale`; everything else
    (norms) as fp32. `settings` says how the codes were found.
    """
    layers = packed_layers(model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor.detach().contiguous().cpu()
    formats = {}
    for name, layer in layers.items():
        is_int8 = layer.codes.dtype == torch.int8
        formats[name] = "int8" if is_int8 else "nvfp4"
        if not is_int8:
            tensors[f"{name}.global_scale"] = torch.tensor([layer.global_scale], dtype=torch.float32)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "bessemer-quantized"})
    description = {"formats": formats, **settings}
    (folder / QUANTIZATION_FILE).write_bytes(canonical_json(description) + b"\n")
    for name in _COPIED:
        (folder / name).write_bytes((source / name).read_bytes())
    copy_tokenizer(source, folder)


def load_quantized(folder: Path) -> Transformer:
    """The model with packed layers, on the CPU.

    Raises:
        ValueError: a tensor is missing, unexpected or of a wrong shape.
    """
    formats: dict[str, str] = json.loads((folder / QUANTIZATION_FILE).read_bytes())["formats"]
    tensors = load_file(folder / WEIGHTS_FILE)
    with torch.device("meta"):
        model = Transformer(load_config(folder))
    try:
        weights = {name: _take_weight(tensors, name, form) for name, form in formats.items()}
    except KeyError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} has no tensor {error}. Quantize the model again.") from error
    replace_weights(model, weights)
    rest = {f"{name}.{part}" for name in formats for part in ("codes", "scales")}
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    missing = sorted(set(missing) - rest)
    if missing or unexpected:
        raise ValueError(f"{folder}: weights missing {missing or 'none'}, unexpected {unexpected or 'none'}.")
    return model


def _take_weight(tensors: dict[str, Tensor], name: str, weight_format: str) -> QuantizedWeight:
    codes, scales = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scales")
    if weight_format == "int8":
        return Int8Weight(codes, scales)
    global_scale = float(tensors.pop(f"{name}.global_scale"))
    return NVFP4Weight(unpack_nibbles(codes), scales, global_scale)
