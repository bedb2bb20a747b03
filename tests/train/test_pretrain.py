"""Pretraining as a stage: a model that others load, the same each time, and refusals that say what to change."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, Outcome, curve_path, obtain
from tasks.mechanism.store import Store
from tasks.train.pretrain import PretrainConfig, pretrain, step_plan
from tests.helpers.training import (
    VOCAB_SIZE,
    full_curve,
    make_inputs,
    tiny_pretrain,
)

Inputs = dict[str, Artifact]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def curve_file(outcome: Outcome, execution: Execution) -> Path:
    return curve_path(Store(execution.home), outcome.manifest.stage, outcome.manifest.key)


def test_a_model_that_transformers_loads(inputs: Inputs, execution: Execution) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = obtain(pretrain, tiny_pretrain(), inputs, execution)
    folder = outcome.artifact.path
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen3" and len(tokenizer) == VOCAB_SIZE
    contract = json.loads((folder / "contract.json").read_bytes())
    assert contract["context_length"] == 64

    metrics = outcome.manifest.metrics
    assert metrics["steps"] == 12 and metrics["train_tokens"] == 12 * 512
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert metrics["val_perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))
    points = full_curve(execution.home)
    whole = [json.loads(line) for line in curve_file(outcome, execution).read_text().splitlines()]
    assert all(point["mfu"] > 0 and point["peak_memory_bytes"] > 1e8 for point in whole)
    assert points[-1]["val_loss"] == metrics["val_loss"] < math.log(VOCAB_SIZE)
    assert {"step", "loss", "bits_per_byte", "learning_rate", "grad_norm"} <= set(points[0])


def test_validation_figures_are_those_of_transformers(inputs: Inputs, execution: Execution) -> None:
    """The same windows, document borders left open, through another implementation."""
    from transformers import AutoModelForCausalLM

    cfg = tiny_pretrain(batches={"steps": 6, "document_attention": False}, precision="fp32", validation_tokens=10**9)
    outcome = obtain(pretrain, cfg, inputs, execution)
    stream = np.fromfile(inputs["tokens"].path / "validation.bin", dtype="<u2").astype(np.int64)
    windows = (len(stream) - 1) // 64
    rows = torch.from_numpy(np.stack([stream[i * 64 : i * 64 + 65] for i in range(windows)]))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(outcome.artifact.path)(rows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert outcome.manifest.metrics["val_loss"] == pytest.approx(loss, rel=1e-5)
    from transformers import AutoTokenizer

    labels = rows[:, 1:].flatten().tolist()
    tokenizer = AutoTokenizer.from_pretrained(outcome.artifact.path)
    sizes = [len(token) for token in tokenizer.convert_ids_to_tokens(range(VOCAB_SIZE - 4))] + [0] * 4
    bits = loss * len(labels) / math.log(2) / sum(sizes[token] for token in labels)
    metrics = outcome.manifest.metrics
    assert metrics["val_bits_per_byte"] == pytest.approx(bits, rel=1e-5)

    spans = pq.read_table(inputs["tokens"].path / "spans.parquet", filters=[("split", "=", "validation")]).to_pylist()
    owners = np.concatenate([[span["source"]] * span["tokens"] for span in spans])[1 : len(labels) + 1]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").numpy()
    for source in ("even", "odd"):
        mine = owners == source
        text_bytes = sum(sizes[token] for token, is_mine in zip(labels, mine) if is_mine)
        expected = nats[mine].sum() / math.log(2) / text_bytes
        assert metrics[f"val_bits_per_byte/{source}"] == pytest.approx(expected, rel=1e-5)
        assert metrics[f"val_perplexity/{source}"] == pytest.approx(math.exp(nats[mine].mean()), rel=1e-5)
    points = full_curve(execution.home)
    assert points[-1]["val_bits_per_byte/odd"] == metrics["val_bits_per_byte/odd"]
    assert not [name for name in points[0] if "/" in name], "sources are told apart in validation only"


@pytest.mark.parametrize(("micro_batch_tokens", "precision"), [(128, "bf16"), (16384, "bf16"), (16384, "int8")])
def test_the_same_bits_twice(inputs: Inputs, tmp_path: Path, micro_batch_tokens: int, precision: str) -> None:
    digests = set()
    for threads in (1, 2):
        execution = Execution(home=tmp_path / str(threads), threads=threads, micro_batch_tokens=micro_batch_tokens)
        cfg = tiny_pretrain(batches={"steps": 6}, precision=precision)
        digests.add(obtain(pretrain, cfg, inputs, execution).artifact.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("cfg", "where", "words"),
    [
        ({"precision": "fp8"}, {}, "'fp8' needs a CUDA device of compute capability 8.9"),
        ({"precision": "int8"}, {"compile": "layers"}, "int8 cannot be compiled"),
        ({}, {"compile": "layers"}, "a C[+][+] compiler on a CPU; looked for no-such-compiler"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: Any, where: Any, words: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    execution = Execution(home=tmp_path, threads=1, device="cpu", **where)
    with pytest.raises(ValueError, match=words):
        obtain(pretrain, tiny_pretrain(**cfg), inputs, execution)


def test_another_tokenizer_is_refused(inputs: Inputs, execution: Execution, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for path in inputs["tokenizer"].path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    contract = json.loads((folder / "contract.json").read_bytes())
    (folder / "contract.json").write_text(json.dumps({**contract, "tokenizer_digest": "f" * 64}))
    other = Artifact("3" * 64, folder)
    with pytest.raises(ValueError, match="tokenizer_digest"):
        obtain(pretrain, tiny_pretrain(), {**inputs, "tokenizer": other}, execution)


def test_it_goes_on_from_another_model(inputs: Inputs, execution: Execution) -> None:
    """The weights are the very ones: a step at almost no learning rate leaves its validation loss where it was."""
    first = obtain(pretrain, tiny_pretrain(), inputs, execution)
    rates = dict.fromkeys(("learning_rate", "embedding_learning_rate", "head_learning_rate"), 1e-12)
    cfg = tiny_pretrain(batches={"steps": 1}, optimizer={"kind": "adamw", **rates})
    second = obtain(pretrain, cfg, {**inputs, "start": first.artifact}, execution)
    assert second.manifest.metrics["val_loss"] == pytest.approx(first.manifest.metrics["val_loss"], abs=1e-6)
    assert second.manifest.key != pretrain.key(cfg, inputs)
    longer = tiny_pretrain(batches={"steps": 1}, model={"context_length": 128})
    assert obtain(pretrain, longer, {**inputs, "start": first.artifact}, execution).status == "built"


def test_a_model_of_another_shape_or_tokenizer_is_no_start(
    inputs: Inputs, execution: Execution, tmp_path: Path
) -> None:
    first = obtain(pretrain, tiny_pretrain(batches={"steps": 1}), inputs, execution).artifact
    wider = tiny_pretrain(model={"hidden_size": 64, "num_layers": 3})
    with pytest.raises(ValueError, match="hidden_size is 32 there, 64 here; num_layers is 2 there, 3 here"):
        obtain(pretrain, wider, {**inputs, "start": first}, execution)
    folder = tmp_path / "other"
    folder.mkdir()
    for path in first.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    contract = json.loads((folder / "contract.json").read_bytes())
    (folder / "contract.json").write_text(json.dumps({**contract, "tokenizer_digest": "e" * 64}))
    with pytest.raises(ValueError, match="tokenizer_digest"):
        obtain(pretrain, tiny_pretrain(), {**inputs, "start": Artifact("5" * 64, folder)}, execution)


def test_horizons() -> None:
    tokens = 64 * 100 + 1
    assert step_plan(tiny_pretrain(batches={"steps": 5}).batches, tokens).steps == 5
    assert step_plan(tiny_pretrain(batches={"steps": 0, "train_tokens": 5000}).batches, tokens).steps == 10
    assert step_plan(tiny_pretrain(batches={"steps": 0, "epochs": 2}).batches, tokens).steps == 25


@pytest.mark.parametrize("first_batch", [64, 128, 256, 512])
def test_a_ramp_takes_its_share_of_the_windows_however_training_ends(first_batch: int) -> None:
    """Counted in steps of full size, a ramp from an eighth outlived its training."""
    ramps = {"initial_batch_tokens": first_batch, "initial_sequence_length": 16, "ramp_fraction": 0.3}
    by_steps = step_plan(tiny_pretrain(batches={"steps": 1000, **ramps}).batches, 64 * 100 + 1)
    windows = int(by_steps.first_window[-1])
    by_tokens = step_plan(
        tiny_pretrain(batches={"steps": 0, "train_tokens": 64 * windows, **ramps}).batches, 64 * 100 + 1
    )
    batches = np.diff(by_steps.first_window)
    assert by_steps.steps == 1000 and abs(by_tokens.steps - 1000) <= 3
    assert (batches[0], batches[-1]) == (first_batch // 64, 8) and (np.diff(batches) >= 0).all()
    for sizes in (batches, by_steps.row_length):
        if sizes[0] != sizes[-1]:
            assert batches[sizes != sizes[-1]].sum() == pytest.approx(0.3 * windows, abs=8)


def rope(**values: Any) -> dict[str, Any]:
    return {"model": {"rope_scaling": values}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": {"sequence_length": 128}}, r"sequence_length 128 exceeds model\.context_length 64"),
        ({"batches": {"batch_tokens": 500}}, "batch_tokens 500 is not a multiple of sequence_length 64"),
        ({"batches": {"initial_batch_tokens": 32}}, "initial_batch_tokens 32 is not a multiple of sequence_length"),
        ({"batches": {"initial_sequence_length": 24}}, "does not reach 64 by doubling"),
        ({"batches": {"initial_batch_tokens": 1024}}, "does not reach 512 by doubling"),
        ({"model": {"hidden_size": 33}}, r"not a multiple of model\.num_heads"),
        ({"model": {"hidden_size": 33, "head_dim": 8, "qk_norm": False}}, r"not a multiple of model\.num_heads"),
        ({"model": {"num_heads": 4, "num_kv_heads": 3}}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"model": {"head_dim": 15}}, r"model\.head_dim is 15, .* must be even"),
        ({"model": {"hidden_size": 34}}, r"model\.head_dim is 17, .* must be even"),
        ({"optimizer": {"learning_rate": 0}}, "greater than 0"),
        (rope(kind="yarn"), r"kind 'yarn' and model\.rope_scaling\.factor 1 do not go together"),
        (rope(factor=4), r"kind 'default' and model\.rope_scaling\.factor 4 do not go together"),
        (rope(kind="dynamic", factor=4), "dynamic"),
        (rope(kind="llama3", factor=4, high_freq_factor=1), "high_freq_factor"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny_pretrain(**changes)


def test_an_empty_split_is_refused(inputs: Inputs, execution: Execution, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for path in inputs["tokens"].path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "validation.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="validation split has no tokens"):
        obtain(pretrain, tiny_pretrain(), {**inputs, "tokens": Artifact("4" * 64, folder)}, execution)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_longer_context_is_trained_and_exported(inputs: Inputs, execution: Execution, kind: Any) -> None:
    from transformers import AutoModelForCausalLM

    from tasks.models.folder import load_model

    cfg = tiny_pretrain(
        batches={"steps": 2},
        precision="fp32",
        model={"context_length": 256, "rope_scaling": {"kind": kind, "factor": 4}},
    )
    folder = obtain(pretrain, cfg, inputs, execution).artifact.path
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.config.rope_parameters["rope_type"] == kind and theirs.config.max_position_embeddings == 256
    if kind != "linear":
        assert theirs.config.rope_parameters["original_max_position_embeddings"] == 64
    ids = torch.arange(250)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(folder)(ids), theirs(ids).logits, atol=1e-5, rtol=0)


def test_defaults_are_a_model_of_five_million() -> None:
    from model.network.flops import num_parameters

    assert 3e6 < num_parameters(PretrainConfig().model.shape(4096)) < 8e6
