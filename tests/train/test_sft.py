"""Fine-tuning as a stage: only the assistant's words are learnt, and what is reported is what others compute."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.network.head import IGNORED
from model.training.packing import PackedBatches
from model.vocabulary.chat_format import Rendered, render_conversation
from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.execution import Execution
from tasks.mechanism.sections import merge
from tasks.mechanism.stage import Artifact, build, obtain
from tasks.tokens.files import read_tokens
from tasks.train.job import bytes_of_tokens
from tasks.train.pretrain import pretrain
from tasks.train.sft import SftConfig, encode_conversations, read_conversations, sft
from tests.helpers.training import VOCAB_SIZE, make_conversations, make_tokenizer, make_tokens, tiny_pretrain

Inputs = dict[str, Artifact]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = make_tokenizer(folder / "tokenizer")
    tokens = make_tokens(folder / "tokens", tokenizer)
    execution = Execution(home=folder / "home", threads=1)
    base = build(pretrain, tiny_pretrain(), {"tokens": tokens, "tokenizer": tokenizer}, execution)
    return {"model": base, "conversations": make_conversations(folder / "conversations")}


@pytest.fixture(scope="module")
def tokens(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_tokens(tmp_path_factory.mktemp("text") / "tokens", inputs["model"])


def tiny(**changes: Any) -> SftConfig:
    batches = {"sequence_length": 64, "batch_tokens": 256, "steps": 30}
    return SftConfig(**merge({"batches": batches, "loop": {"evaluate_every": 10}, "precision": "fp32"}, changes))


def test_it_learns_to_answer(inputs: Inputs, execution: Execution) -> None:
    before = obtain(sft, tiny(batches={"steps": 1}), inputs, execution).manifest.metrics
    metrics = obtain(
        sft, tiny(batches={"steps": 60}, optimizer={"matrix_learning_rate": 0.02}), inputs, execution
    ).manifest.metrics
    assert metrics["train_conversations"] == 55 and metrics["validation_conversations"] == 5
    assert metrics["val_loss"] < before["val_loss"] - 0.3
    assert 0 <= metrics["val_token_accuracy"] <= 1
    assert metrics["steps"] == 60 and metrics["dropped"] == metrics["truncated"] == 0


def test_validation_figures_are_those_of_transformers(inputs: Inputs, execution: Execution) -> None:
    """Conversation by conversation, unpacked, with transformers' own template, mask and model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = obtain(sft, tiny(), inputs, execution)
    folder = outcome.artifact.path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    import pyarrow.parquet as pq

    total, correct, count = 0.0, 0, 0
    for messages in pq.read_table(inputs["conversations"].path / "validation.parquet")["messages"].to_pylist():
        out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = torch.tensor(out["input_ids"]), torch.tensor(out["assistant_masks"]).bool()[1:]
        with torch.no_grad():
            logits = model(ids[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits[mask], ids[1:][mask], reduction="sum").item()
        correct += int((logits.argmax(-1) == ids[1:])[mask].sum())
        count += int(mask.sum())
    assert outcome.manifest.metrics["val_loss"] == pytest.approx(total / count, rel=1e-4)
    assert outcome.manifest.metrics["val_token_accuracy"] == pytest.approx(correct / count)


def text_bits_per_byte(folder: Path, tokens: Artifact, length: int) -> float:
    """Of held-out windows, each document by itself, by transformers' model."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), Tokenizer.load(folder)
    stream = read_tokens(tokens.path, "validation").astype(np.int64)
    nats, size, token_bytes = 0.0, 0.0, bytes_of_tokens(tokenizer)
    for start in range(0, len(stream) - length, length):
        ids = stream[start : start + length + 1]
        borders = [0, *(np.flatnonzero(ids[1:-1] == tokenizer.endoftext_id) + 1), length]
        for begin, end in pairwise(borders):
            with torch.no_grad():
                logits = model(torch.from_numpy(ids[None, begin:end])).logits[0]
            labels = torch.from_numpy(ids[begin + 1 : end + 1])
            nats += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        size += float(token_bytes[ids[1:]].sum())
    return nats / math.log(2) / size


def test_replayed_text_is_not_forgotten(inputs: Inputs, tokens: Artifact, execution: Execution) -> None:
    changes = {"batches": {"steps": 60}, "optimizer": {"matrix_learning_rate": 0.02}}
    without = obtain(sft, tiny(**changes, replay_share=0), {**inputs, "tokens": tokens}, execution)
    replayed = obtain(sft, tiny(**changes, replay_share=0.5), {**inputs, "tokens": tokens}, execution)
    found = replayed.manifest.metrics["val_text_bits_per_byte"]
    assert found == pytest.approx(text_bits_per_byte(replayed.artifact.path, tokens, 64), rel=1e-4)
    assert found < text_bits_per_byte(without.artifact.path, tokens, 64) - 0.15  # seen: 0.28
    assert "val_text_bits_per_byte" not in without.manifest.metrics
    untrained = obtain(sft, tiny(batches={"steps": 1}), inputs, execution)
    assert replayed.manifest.metrics["val_loss"] < untrained.manifest.metrics["val_loss"] - 0.3  # and learns to answer


def test_a_share_of_text_leaves_an_epoch_of_conversations_whole(
    inputs: Inputs, tokens: Artifact, execution: Execution
) -> None:
    steps = {
        share: obtain(
            sft, tiny(batches={"steps": 0}, replay_share=share), {**inputs, "tokens": tokens}, execution
        ).manifest.metrics["steps"]
        for share in (0.0, 0.5)
    }
    assert steps[0.5] == pytest.approx(2 * steps[0.0], abs=1)


def test_held_out_text_shorter_than_a_row_is_measured(inputs: Inputs, execution: Execution, tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens", inputs["model"])
    held_out = tokens.path / "validation.bin"
    held_out.write_bytes(held_out.read_bytes()[:80])  # 40 tokens, a row takes 64
    figures = obtain(sft, tiny(), {**inputs, "tokens": tokens}, execution).manifest.metrics
    assert 0 < figures["val_text_bits_per_byte"] < 10


def test_text_of_another_tokenizer_is_refused(inputs: Inputs, execution: Execution, tmp_path: Path) -> None:
    other = make_tokens(tmp_path / "tokens", make_tokenizer(tmp_path / "tokenizer", VOCAB_SIZE + 8))
    with pytest.raises(ValueError, match="tokenizer"):
        obtain(sft, tiny(), {**inputs, "tokens": other}, execution)


def test_only_the_assistants_words_are_labels(inputs: Inputs) -> None:
    folder = inputs["model"].path
    tokenizer = Tokenizer.load(folder)
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    encoded = encode_conversations([render_conversation(tokenizer, messages)], 64, "drop")
    batches = PackedBatches(encoded.sequences, 64, 1, 0, bytes_of_tokens(tokenizer))
    batch = batches.batch(batches.items(0), 0)
    assert tokenizer.decode(batch.labels[batch.labels != IGNORED].tolist()) == "two<|im_end|>four<|im_end|>"
    assert batch.label_bytes.sum() == len("twofour")


@pytest.mark.parametrize(("too_long", "kept", "truncated", "dropped"), [("truncate", 2, 1, 1), ("drop", 1, 0, 2)])
def test_too_long_conversations(too_long: Any, kept: int, truncated: int, dropped: int) -> None:
    fits = Rendered([1] * 9, [False] * 4 + [True] * 5)
    cut = Rendered([2] * 20, [False] * 4 + [True] * 16)
    all_prompt = Rendered([3] * 20, [False] * 15 + [True] * 5)
    encoded = encode_conversations([fits, cut, all_prompt], 8, too_long)
    assert (len(encoded.sequences), encoded.truncated, encoded.dropped) == (kept, truncated, dropped)
    assert max(encoded.sequences.positions) == 8


def test_the_first_conversations(inputs: Inputs) -> None:
    path = inputs["conversations"].path / "train.parquet"
    assert len(read_conversations(path, inputs["model"].path, 7)) == 7
    assert len(read_conversations(path, inputs["model"].path)) == 55


def test_rows_longer_than_the_model_reads_are_refused(inputs: Inputs, execution: Execution) -> None:
    with pytest.raises(ValueError, match="sequence_length is 128, but the model reads at most 64"):
        obtain(sft, tiny(batches={"sequence_length": 128}), inputs, execution)


def test_nothing_to_learn_is_refused(inputs: Inputs, execution: Execution, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        obtain(sft, tiny(batches={"sequence_length": 8}, too_long="drop"), inputs, execution)
