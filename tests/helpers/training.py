"""Tiny tokenizers, token streams, conversations and pairs as artifacts, and curves, for the tests of training."""

import json
from hashlib import md5
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.training.meter import MACHINE_FIGURES
from model.vocabulary.tokenizer import Tokenizer, train_bpe
from tasks.mechanism.sections import merge
from tasks.mechanism.stage import Artifact
from tasks.mechanism.store import digest_directory
from tasks.tokens.contract import CONTRACT_FILE
from tasks.tokens.tokenizer import write_tokenizer
from tasks.train.pretrain import PretrainConfig

VOCAB_SIZE = 512
# What two processes may differ from one by, in fp32: seen were 1.2e-6 nats of 6, two units in the last place, and
# 2e-8 of a gradient's norm, over 40 steps.
LOSS_NATS, NORM_SHARE = 4e-6, 3e-7
TINY: dict[str, Any] = {
    "model": {
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 64,
        "context_length": 64,
    },
    "batches": {"sequence_length": 64, "batch_tokens": 512, "steps": 12},
    # At 0.008 one process differs from itself by 5e-7 of a norm, its sums made in parts.
    "optimizer": {"head_learning_rate": 0.004},
    "loop": {"checkpoint_every": 4, "evaluate_every": 0},
    "validation_tokens": 1024,
}


def tiny_pretrain(**changes: Any) -> PretrainConfig:
    """A model of 50k parameters and 12 steps of 8 x 64 tokens, unless changed."""
    return PretrainConfig(**merge(TINY, changes))


def calm_pretrain(**changes: Any) -> PretrainConfig:
    """Rates at which rounding does not grow from step to step.

    At those of TINY it reaches 3.5e-7 of a norm in 8 steps where MKL adds up strictly.
    """
    rates = {"optimizer": {"matrix_learning_rate": 0.005, "head_learning_rate": 0.001}}
    return tiny_pretrain(**merge(rates, changes))


def killed_pretrain() -> PretrainConfig:
    """A run that is long enough to be killed in, and that all strategies can carry out."""
    return tiny_pretrain(
        batches={"steps": 40}, loop={"evaluate_every": 10}, optimizer={"kind": "adamw"}, precision="fp32"
    )


def artifact(folder: Path) -> Artifact:
    """A folder as an artifact."""
    return Artifact(digest_directory(folder)[0], folder)


def make_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> Artifact:
    """A tokenizer learnt from Python's help topics."""
    folder.mkdir(parents=True)
    write_tokenizer(train_bpe(iter([*topics.values(), "user\n\n\nassistant\n\n"]), vocab_size), folder)
    return artifact(folder)


def make_tokens(folder: Path, tokenizer: Artifact) -> Artifact:
    """Help topics as packed tokens, every eighth for validation, with their spans: from the sources even and odd."""
    folder.mkdir(parents=True)
    tok = Tokenizer.load(tokenizer.path)
    documents = list(topics.items())
    spans: list[dict[str, Any]] = []
    meta: dict[str, Any] = {"vocab_size": tok.vocab_size, "dtype": "uint16"}
    for split, chosen in (("train", [d for i, d in enumerate(documents) if i % 8]), ("validation", documents[::8])):
        ids = [np.array([*tok.encode(text), tok.endoftext_id], dtype="<u2") for _, text in chosen]
        sizes = [len(text.encode()) for _, text in chosen]
        start = 0
        for number, (name, _) in enumerate(chosen):
            place = {"start": start, "tokens": len(ids[number]), "bytes": sizes[number]}
            source = "odd" if number % 2 else "even"
            spans.append({"doc_id": md5(name.encode()).hexdigest(), "source": source, "split": split, **place})
            start += len(ids[number])
        np.concatenate(ids).tofile(folder / f"{split}.bin")
        meta |= {f"{split}_tokens": start, f"{split}_bytes": sum(sizes)}
    pq.write_table(pa.Table.from_pylist(spans), folder / "spans.parquet")
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / CONTRACT_FILE).write_bytes((tokenizer.path / CONTRACT_FILE).read_bytes())
    return artifact(folder)


def make_inputs(folder: Path) -> dict[str, Artifact]:
    """What pretraining reads."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    return {"tokens": make_tokens(folder / "tokens", tokenizer), "tokenizer": tokenizer}


def _write(folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> Artifact:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(train), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(validation), folder / "validation.parquet")
    return artifact(folder)


def make_conversations(folder: Path, count: int = 60) -> Artifact:
    """Questions whose answer repeats a word of the question."""
    rows = [
        {
            "conversation_id": str(i),
            "messages": [
                {"role": "user", "content": f"What is {word}?"},
                {"role": "assistant", "content": f"{word} is {word}."},
            ],
            "source": "test",
        }
        for i, word in enumerate(list(topics)[:count])
    ]
    return _write(folder, rows[5:], rows[:5])


def make_preferences(folder: Path, count: int = 40) -> Artifact:
    """Pairs of a polite and a rude answer."""
    rows = [
        {
            "preference_id": str(i),
            "prompt": [{"role": "user", "content": f"What is {word}?"}],
            "chosen": [{"role": "assistant", "content": f"Here is {word} for you."}],
            "rejected": [{"role": "assistant", "content": f"No no {word}."}],
            "source": "test",
        }
        for i, word in enumerate(list(topics)[:count])
    ]
    return _write(folder, rows[8:], rows[:8])


def full_curve(home: Path, stage: str = "pretrain") -> list[dict[str, Any]]:
    """The one curve of a stage in a home, without what depends on the machine."""
    (path,) = home.glob(f"keys/{stage}/*.curve.jsonl")
    return [{k: v for k, v in json.loads(p).items() if k not in MACHINE_FIGURES} for p in path.read_text().splitlines()]


def assert_same_but_for_rounding(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    """Compare every figure of every step."""
    assert [p["step"] for p in one] == [p["step"] for p in other]
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for name, value in a.items():
            place = f"{name} of step {a['step']}: {b[name]} for {value}"
            assert b[name] == pytest.approx(value, rel=0, abs=_allowed(name, value)), place


def _allowed(name: str, value: float) -> float:
    """A perplexity is the exponential of a loss, so nats there are shares here."""
    if name == "grad_norm":
        return NORM_SHARE * value
    return LOSS_NATS * value if name.startswith("val_perplexity") else LOSS_NATS
