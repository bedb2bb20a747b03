"""Weights in one file or in many: ours read by transformers, transformers' by us, with equal logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.network.transformer import Transformer
from tasks.mechanism.stage import Artifact
from tasks.models.chat import ChatModel
from tasks.models.folder import end_ids, load_model, save_model
from tasks.models.tensors import save_weights
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


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def put(path: Path, **values: Any) -> None:
    """Change values of a JSON file; None removes one."""
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def retyped(path: Path, name: str, change: Any) -> None:
    """Change one tensor of a safetensors file."""
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path)


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "weights cut short": (
        "model.safetensors",
        cut_short,
        r"model.safetensors \(\d+ bytes\) is no whole safetensors file",
    ),
    "weights are text": (
        "model.safetensors",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        "model.safetensors .* is no whole safetensors file",
    ),
    "config cut short": ("config.json", cut_short, "config.json is not JSON"),
    "config is a list": ("config.json", lambda path: path.write_text("[]"), "config.json holds a JSON list, an object"),
    "config is bytes": ("config.json", lambda path: path.write_bytes(b"\xff\xfe{"), "config.json is not JSON"),
    "no config": ("config.json", Path.unlink, "holds no config.json: it is not a model folder"),
    "config of another model": ("config.json", lambda path: put(path, model_type="gpt2"), "model_type is 'gpt2'"),
    "config without heads": ("config.json", lambda path: put(path, num_attention_heads=None), "must be an integer"),
    "config with no heads": (
        "config.json",
        lambda path: put(path, num_attention_heads=0),
        "num_heads is 0: input should be greater than or equal to 1",
    ),
    "config with a word": ("config.json", lambda path: put(path, head_dim="wide"), "'wide'"),
    "config with a list": ("config.json", lambda path: put(path, rms_norm_eps=[1]), "config.json does not describe"),
    "config of a wider model": (
        "config.json",
        lambda path: put(path, intermediate_size=256),
        r"mlp.gate_proj.weight is \(128, 64\) of torch.float32, but by config.json it should be \(256, 64\)",
    ),
    "config of a deeper model": (
        "config.json",
        lambda path: put(path, num_hidden_layers=4),
        r"weights missing model.layers.2.input_layernorm.weight, .* and 17 more, unexpected none",
    ),
    "weights of integers": (
        "model.safetensors",
        lambda path: retyped(path, "model.norm.weight", Tensor.int),
        "model.norm.weight is .* of torch.int32, but by config.json it should be",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_with_what_was_expected(tmp_path: Path, tokenizer: Artifact, damage: str) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS)
    name, inflict, message = DAMAGES[damage]
    inflict(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


TALK_DAMAGES: dict[str, tuple[str, Any, str]] = {
    "no tokenizer": ("tokenizer.json", Path.unlink, "holds no tokenizer.json"),
    "tokenizer cut short": ("tokenizer.json", cut_short, "tokenizer.json is not JSON"),
    "tokenizer of another kind": ("tokenizer.json", lambda path: path.write_text("{}"), "not a tokenizer that this"),
    "settings cut short": ("generation_config.json", cut_short, "generation_config.json is not JSON"),
    "settings with a word": (
        "generation_config.json",
        lambda path: put(path, eos_token_id="end"),
        "eos_token_id is 'end', a token id or a list of them was expected",
    ),
}


@pytest.mark.parametrize("damage", TALK_DAMAGES)
def test_a_folder_that_cannot_talk_says_why(tmp_path: Path, tokenizer: Artifact, damage: str) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS)
    name, inflict, message = TALK_DAMAGES[damage]
    inflict(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        ChatModel.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_settings_may_say_nothing_of_an_end(tmp_path: Path, tokenizer: Artifact) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS)
    assert len(end_ids(tmp_path)) == 1
    put(tmp_path / "generation_config.json", eos_token_id=[3, 5])
    assert end_ids(tmp_path) == {3, 5}
    put(tmp_path / "generation_config.json", eos_token_id=None)
    assert end_ids(tmp_path) == set()
    (tmp_path / "generation_config.json").unlink()
    assert end_ids(tmp_path) == set()


def test_an_embedding_stored_twice_is_read_once(tmp_path: Path, tokenizer: Artifact) -> None:
    model = random_model(tied_embeddings=True)
    save_model(tmp_path, model, tokenizer.path, END_TOKENS)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_an_index_of_something_else_is_refused(tmp_path: Path, tokenizer: Artifact) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS, SHARD_BYTES)
    index = tmp_path / "model.safetensors.index.json"
    for content in ('{"weight_map": {"a": 1}}', "{}", '{"weight_map": []}'):
        index.write_text(content)
        with pytest.raises(ValueError, match="has no weight_map that names a file for each tensor"):
            load_model(tmp_path)


def test_missing_weights_are_named(tmp_path: Path, tokenizer: Artifact) -> None:
    save_model(tmp_path, random_model(), tokenizer.path, END_TOKENS, SHARD_BYTES)
    weight_files(tmp_path)[1].unlink()
    with pytest.raises(ValueError, match=r"index.json names model-00002-of-\d+.safetensors, which is not there"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        load_model(tmp_path)
