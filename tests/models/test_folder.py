"""Weights in one file or in many: ours read by transformers, transformers' by us, with equal logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.network.transformer import Transformer
from tasks.mechanism.stage import Artifact
from tasks.models.folder import load_model, save_model, save_weights
from tests.helpers.inference import make_model, random_model
from tests.helpers.training import make_tokenizer

FAMILIES = {
    "qwen3": {"qk_norm": True},
    "qwen3 tied": {"qk_norm": True, "tied_embeddings": True},
    "llama": {"qk_norm": False},
    "llama tied": {"qk_norm": False, "tied_embeddings": True, "num_kv_heads": 4},
}
IDS = torch.arange(0, 500, 7)[None]
SHARD_BYTES = 70_000  # some matrices are smaller, the embedding is larger
END_TOKENS = ("<|im_end|>",)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


def logits(model: Transformer) -> Tensor:
    with torch.inference_mode():
        return model(IDS)


def their_logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(IDS).logits
    return found


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_our_shards_are_read_by_transformers(tmp_path: Path, tokenizer: Artifact, family: str) -> None:
    model = random_model(**FAMILIES[family])
    save_model(tmp_path, model, tokenizer.path, END_TOKENS, SHARD_BYTES)
    files = weight_files(tmp_path)
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    assert set(index["weight_map"]) == set(model.state_dict())
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(their_logits(theirs), logits(model))
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_of_transformers_are_read_by_us(tmp_path: Path, tokenizer: Artifact, family: str) -> None:
    ours = make_model(tmp_path / "ours", random_model(**FAMILIES[family]), tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(ours.path)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD_BYTES)
    assert len(weight_files(tmp_path / "theirs")) > 3
    assert torch.equal(logits(load_model(tmp_path / "theirs")), their_logits(theirs))


def test_shards_keep_to_their_size_and_order(tmp_path: Path) -> None:
    sizes = {"a": 6, "b": 4, "c": 1, "d": 25, "e": 9, "f": 1}
    save_weights(tmp_path, {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}, 10)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert [int(file[6:11]) for file in index["weight_map"].values()] == [1, 1, 2, 3, 4, 4]


def test_few_weights_are_one_file(tmp_path: Path, tokenizer: Artifact) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_missing_weights_are_named(tmp_path: Path, tokenizer: Artifact) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS, SHARD_BYTES)
    weight_files(tmp_path)[1].unlink()
    with pytest.raises(ValueError, match=r"index.json names model-00002-of-\d+.safetensors, which is not there"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        load_model(tmp_path)
