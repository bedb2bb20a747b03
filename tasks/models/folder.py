"""A model on disk, in full or quantized: the Hugging Face layout that every engine reads, with our contract beside it.

A quantized folder has packed codes and scales in place of the weights, and `quantization.json`, which says which
matrix is in which format. Nobody else knows the names of the files.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.network.hf import SpecialIds, from_hf_config, to_hf_config
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.quantization.formats import FORMATS, Format, QuantizedWeight
from model.quantization.packed import packed_layers, replace_weights
from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.identity import canonical_json
from tasks.models.tensors import (
    MAX_SHARD_BYTES,
    check_tensors,
    read_json,
    read_tensors,
    read_weights,
    save_weights,
    write_json,
)
from tasks.tokens.contract import CONTRACT_FILE, TOKENIZER_FILES, contract_of_tokenizer, copy_tokenizer, write_contract

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PACKED_FILE = "weights.safetensors"
QUANTIZATION_FILE = "quantization.json"
TOKENIZER_FILE, _, TEMPLATE_FILE = TOKENIZER_FILES


def is_quantized(folder: Path) -> bool:
    """Whether the folder holds packed weights."""
    return (folder / QUANTIZATION_FILE).is_file()


def weights_bytes(folder: Path) -> int:
    """What the weights take on disk, without tokenizer and settings."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def end_ids(folder: Path) -> frozenset[int]:
    """The tokens at which its own settings say that a generator should stop; none where they say nothing.

    Raises:
        ValueError: the settings are damaged.
    """
    path = folder / GENERATION_FILE
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    ends = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(end, int) for end in ends):
        raise ValueError(f"{path}: eos_token_id is {found!r}, a token id or a list of them was expected.")
    return frozenset(ends)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that lies beside the weights.

    Raises:
        ValueError: it is missing or damaged, or lacks a special token.
    """
    tokenizer_specification(folder)  # says what is missing or damaged
    try:
        return Tokenizer.load(folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / TOKENIZER_FILE} is not a tokenizer that this version reads ({type(error).__name__}: {error}); "
            "one of byte-level BPE was expected."
        ) from error


def tokenizer_specification(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer.json`.

    Raises:
        ValueError: it is missing or damaged.
    """
    return read_json(folder / TOKENIZER_FILE)


def chat_template(folder: Path) -> str:
    """The Jinja template by which a conversation becomes text.

    Raises:
        ValueError: it is missing.
    """
    try:
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {TEMPLATE_FILE}: what a conversation looks like is not known.") from error


def save_model(
    folder: Path,
    transformer: Transformer,
    tokenizer_dir: Path,
    end_tokens: tuple[str, ...],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config, weights (fp32), tokenizer, generation defaults and contract into `folder`.

    `end_tokens` are the special tokens at which a generator should stop, most usual first. Weights of more than
    `max_shard_bytes` become several files with an index.
    """
    contract = replace(contract_of_tokenizer(tokenizer_dir), context_length=transformer.config.context_length)
    ids = contract.special_ids
    special = SpecialIds(ids["<|endoftext|>"], tuple(ids[token] for token in end_tokens), ids["<|pad|>"])
    config = to_hf_config(transformer.config, special)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / GENERATION_FILE, generation)
    # safetensors refuses tensors that are not contiguous; the master weights are fp32, and so is what is kept.
    weights = {name: tensor.detach().float().contiguous().cpu() for name, tensor in transformer.state_dict().items()}
    save_weights(folder, weights, max_shard_bytes)
    copy_tokenizer(tokenizer_dir, folder)
    write_contract(folder, contract)


def save_quantized(folder: Path, source: Path, model: Transformer, settings: Mapping[str, object]) -> None:
    """Write a model with packed layers; config, tokenizer and contract come from `source`, the model it was made of.

    Each packed layer is stored as the tensors of its format (`model.quantization.formats`), such as `<name>.codes` and
    `<name>.scales`; everything else (norms) as fp32. `settings` says how the codes were found.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / PACKED_FILE, metadata={"format": "bessemer-quantized"})
    formats = {name: layer.format.name for name, layer in packed_layers(model).items()}
    (folder / QUANTIZATION_FILE).write_bytes(canonical_json({"formats": formats, **settings}) + b"\n")
    for name in (CONFIG_FILE, GENERATION_FILE, CONTRACT_FILE):
        (folder / name).write_bytes((source / name).read_bytes())
    copy_tokenizer(source, folder)


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`.

    Raises:
        ValueError: it is not a Llama or Qwen3 that we compute exactly, or the file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    found = read_json(path)
    try:
        return from_hf_config(found)
    except ValueError as error:  # it says what was found and expected, but not where
        raise ValueError(f"{folder}: {error}") from error
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{path} does not describe a model ({type(error).__name__}: {error}). Copy or build it again."
        ) from error


def load_any_model(folder: Path) -> Transformer:
    """The model in a folder of either kind; packed weights stay packed.

    Raises:
        ValueError: it is neither.
    """
    return load_quantized(folder) if is_quantized(folder) else load_model(folder)


def load_model(folder: Path) -> Transformer:
    """The model in `folder`, in fp32 on the CPU; its weights may be in one file or in several with an index.

    Raises:
        ValueError: the folder is none of a model in full, or damaged.
    """
    if is_quantized(folder):
        raise ValueError(
            f"{folder} holds a quantized model ({QUANTIZATION_FILE}), but weights in full are needed here. Name the "
            "model that it was made of."
        )
    transformer = _empty(folder)
    tied = ["lm_head.weight"] if transformer.config.tied_embeddings else []  # some writers store the embedding twice
    weights = read_weights(folder)
    check_tensors(folder, weights, transformer.state_dict(), tied)
    wanted = {name: weights.pop(name).float() for name in transformer.state_dict()}  # popped: never all of it twice
    transformer.load_state_dict(wanted, assign=True)
    for parameter in transformer.parameters():
        parameter.requires_grad_(True)
    return transformer


def load_quantized(folder: Path) -> Transformer:
    """The model with packed layers, on the CPU.

    Raises:
        ValueError: a format is unknown, or a tensor is missing, unexpected or of a wrong shape or dtype.
    """
    tensors = read_tensors(folder / PACKED_FILE)
    model = _empty(folder)
    replace_weights(
        model, {name: _weight(folder, model, tensors, name, form) for name, form in formats_of(folder).items()}
    )
    check_tensors(folder, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model


def formats_of(folder: Path) -> dict[str, Format]:
    """The format of each packed matrix of a quantized folder, by the name of its module.

    Raises:
        ValueError: `quantization.json` is missing or damaged, or names a format that this version does not know.
    """
    path = folder / QUANTIZATION_FILE
    named = read_json(path).get("formats")
    if not isinstance(named, dict):
        raise ValueError(f"{path}: formats is {named!r}, the format of each matrix by name was expected.")
    for matrix, name in named.items():
        if name not in FORMATS:
            raise ValueError(
                f"{path}: {matrix} is in the format {name!r}; this version reads {', '.join(FORMATS)}. Quantize the "
                "model again."
            )
    return {matrix: FORMATS[name] for matrix, name in named.items()}


def _empty(folder: Path) -> Transformer:
    """The model that config.json describes, without memory for its weights."""
    config = load_config(folder)
    with torch.device("meta"):
        return Transformer(config)


def _weight(
    folder: Path, model: Transformer, tensors: Mapping[str, torch.Tensor], name: str, weight_format: Format
) -> QuantizedWeight:
    """The stored tensors of one matrix, held against the shape that config.json implies."""
    path = folder / PACKED_FILE
    for part in weight_format.stored:
        if f"{name}.{part}" not in tensors:
            raise ValueError(f"{path} has no tensor '{name}.{part}'. Quantize the model again.")
    try:
        rows, columns = model.get_parameter(f"{name}.weight").shape
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{folder / QUANTIZATION_FILE}: the model has no matrix {name!r} to be packed.") from error
    for part, stored in weight_format.stored.items():
        # The kernels trust shapes and types: a damaged file must not reach compiled code.
        tensor, shape = tensors[f"{name}.{part}"], stored.shape(rows, columns)
        if tensor.shape != shape or tensor.dtype != getattr(torch, stored.dtype):
            raise ValueError(
                f"{path}: {name}.{part} is {tuple(tensor.shape)} of {tensor.dtype}, but {weight_format.name} stores a "
                f"matrix ({rows}, {columns}) as {shape} of torch.{stored.dtype}. Quantize the model again."
            )
    return QuantizedWeight(weight_format, {part: tensors[f"{name}.{part}"] for part in weight_format.stored})
