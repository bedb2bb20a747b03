"""A model on disk: the Hugging Face layout that every engine reads, with our contract beside it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.network.hf import SpecialIds, from_hf_config, to_hf_config
from model.network.transformer import ModelConfig, Transformer
from tasks.tokens.contract import contract_of_tokenizer, copy_tokenizer, write_contract

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
"""Most hosts and file systems take files of this size; transformers reads any number of shards."""


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
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    weights = {name: tensor.detach().float().contiguous().cpu() for name, tensor in transformer.state_dict().items()}
    save_weights(folder, weights, max_shard_bytes)
    copy_tokenizer(tokenizer_dir, folder)
    write_contract(folder, contract)


def save_weights(folder: Path, weights: Mapping[str, torch.Tensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` and so on with the index of transformers.

    Tensors stay in order; only one that is itself larger than `max_shard_bytes` makes a larger file.
    """
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in weights.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS_FILE, metadata={"format": "pt"})
        return
    homes: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": homes})


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`.

    Raises:
        ValueError: it is not a Llama or Qwen3 that we compute exactly.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no config.json: it is not a model folder.")
    return from_hf_config(json.loads(path.read_text(encoding="utf-8")))


def load_model(folder: Path) -> Transformer:
    """The model in `folder`, in fp32 on the CPU; its weights may be in one file or in several with an index."""
    config = load_config(folder)
    with torch.device("meta"):
        transformer = Transformer(config)
    weights: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        weights |= {name: tensor.float() for name, tensor in load_file(path).items()}
    if config.tied_embeddings:
        weights.pop("lm_head.weight", None)  # some writers store the embedding twice
    missing, unexpected = transformer.load_state_dict(weights, strict=False, assign=True)
    if missing or unexpected:
        raise ValueError(f"{folder}: weights missing {missing or 'none'}, unexpected {unexpected or 'none'}.")
    for parameter in transformer.parameters():
        parameter.requires_grad_(True)
    return transformer


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights; one file before an index, as transformers looks.

    Raises:
        ValueError: there are none, or one that the index names is missing.
    """
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if not index.exists():
        raise ValueError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}: its weights are missing.")
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    paths = [folder / name for name in sorted(names)]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise ValueError(f"{index} names {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not there.")
    return paths


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
