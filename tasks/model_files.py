"""A model on disk: the Hugging Face layout that every engine reads, with our contract beside it."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.hf import SpecialIds, from_hf_config, to_hf_config
from model.transformer import ModelConfig, Transformer
from tasks.contract import contract_of_tokenizer, copy_tokenizer, write_contract

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def save_model(folder: Path, transformer: Transformer, tokenizer_dir: Path, end_tokens: tuple[str, ...]) -> None:
    """Write config, weights (fp32), tokenizer, generation defaults and contract into `folder`.

    `end_tokens` are the special tokens at which a generator should stop, most usual first.
    """
    contract = replace(contract_of_tokenizer(tokenizer_dir), context_length=transformer.config.context_length)
    ids = contract.special_ids
    special = SpecialIds(ids["<|endoftext|>"], tuple(ids[token] for token in end_tokens), ids["<|pad|>"])
    config = to_hf_config(transformer.config, special)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    weights = {name: tensor.detach().float().contiguous().cpu() for name, tensor in transformer.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    copy_tokenizer(tokenizer_dir, folder)
    write_contract(folder, contract)


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
    index = folder / INDEX_FILE
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return [folder / WEIGHTS_FILE]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
