"""Tensors and JSON in the files of a folder: a safetensors file or shards with an index; damage ends in a sentence."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
"""Most hosts and file systems take files of this size; transformers reads any number of shards."""
_NAMES_SHOWN = 5  # of a list of tensors in a message: one that is foreign has hundreds


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
        save_file(shards[0], folder / WEIGHTS_FILE, metadata={"format": "pt"})  # transformers asks for `format`
        return
    homes: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(shard, file)
    # Bytes of the tensors, without the headers of the files: what transformers writes there.
    total = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": homes})


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of `model.safetensors`, or of the files that the index names.

    Raises:
        ValueError: there are none, a file that the index names is missing, or one is damaged.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        weights |= read_tensors(path)
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """One file before an index, as transformers looks."""
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if not index.exists():
        raise ValueError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}: its weights are missing.")
    homes = read_json(index).get("weight_map")
    if not isinstance(homes, dict) or not all(isinstance(name, str) for name in homes.values()):
        raise ValueError(f"{index} has no weight_map that names a file for each tensor. Copy the model again.")
    paths = [folder / name for name in sorted(set(homes.values()))]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise ValueError(f"{index} names {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not there.")
    return paths


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, on the CPU.

    Raises:
        ValueError: it is missing, cut short or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} holds no {path.name}: its weights are missing.") from error
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch has not
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size} bytes) is no whole safetensors file: {error}. Copy or build the model again."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: there is no file, or it holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} holds no {path.name}: it is not a model folder, or not a whole one."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Copy or build the model again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a JSON {type(found).__name__}, an object was expected.")
    return found


def write_json(path: Path, value: object) -> None:
    """Write it for people, with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_tensors(
    folder: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], any_of: Sequence[str] = ()
) -> None:
    """Refuse tensors of other names, shapes or kinds of number than the model that config.json describes has.

    `any_of` may be there or not. A floating-point tensor may be of another precision.

    Raises:
        ValueError: with what is missing or unexpected, or the tensor with what was found and expected.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys() - set(any_of))
    if missing or unexpected:
        raise ValueError(
            f"{folder}: weights missing {_listed(missing)}, unexpected {_listed(unexpected)}. They are not those of "
            "the model that its config.json describes."
        )
    for name, wanted in expected.items():
        tensor = found[name]
        # bf16 or fp16 becomes fp32 on loading; integers in place of floats are codes that nobody could unpack.
        same_kind = tensor.dtype == wanted.dtype or (tensor.is_floating_point() and wanted.is_floating_point())
        if tensor.shape != wanted.shape or not same_kind:
            raise ValueError(
                f"{folder}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, but by config.json it should be "
                f"{tuple(wanted.shape)} of {wanted.dtype}."
            )


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
