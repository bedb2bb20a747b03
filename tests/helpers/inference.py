"""A small model trained for seconds, with its tokens and tokenizer, for the tests of quantization and inference."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.network.head import linear_cross_entropy
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from tasks.mechanism.stage import Artifact
from tasks.models.folder import save_model
from tasks.tokens.files import write_overlap
from tests.helpers.training import artifact, make_preferences, make_tokenizer, make_tokens


def make_scored_tokens(folder: Path, tokenizer: Artifact) -> Artifact:
    """`make_tokens` with what scoring needs to know of memorised text."""
    make_tokens(folder, tokenizer)
    write_overlap(folder)
    return artifact(folder)


def tiny_config(**changes: object) -> ModelConfig:
    """Two layers of 64, grouped queries, QK-norm, untied."""
    shape: dict[str, object] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "context_length": 128,
    }
    return ModelConfig(**{**shape, **changes})  # type: ignore[arg-type]


def random_model(seed: int = 0, **changes: object) -> Transformer:
    """A model with random weights in every matrix, so that nothing is hidden by zeros."""
    model = Transformer(tiny_config(**changes)).eval()
    model.initialize(seed, "depth")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    return model


def train(model: Transformer, tokens: Artifact, steps: int, seed: int = 0) -> Transformer:
    """Take some AdamW steps on the tokens: gives weights the structure that quantization meets."""
    stream = np.fromfile(tokens.path / "train.bin", "<u2").astype(np.int64)
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(steps):
        starts = random.integers(0, len(stream) - 65, 8)
        rows = torch.from_numpy(np.stack([stream[s : s + 65] for s in starts]))
        loss = linear_cross_entropy(model.hidden(rows[:, :-1]), model.head_weight, rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def make_model(folder: Path, model: Transformer, tokenizer: Artifact) -> Artifact:
    """The model as an artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer.path, ("<|im_end|>", "<|endoftext|>"))
    return artifact(folder)


def scores_of(evaluation: Artifact) -> dict[str, float]:
    """The figures of an evaluation."""
    found: dict[str, float] = json.loads((evaluation.path / "scores.json").read_bytes())
    return found


@dataclass(frozen=True)
class World:
    """A tokenizer, tokens, pairs, and two models of one family: the second learnt for longer."""

    tokenizer: Artifact
    tokens: Artifact
    preferences: Artifact
    early: Artifact
    model: Artifact


def make_world(folder: Path) -> World:
    """All of it, in some seconds."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(folder / "tokenizer")
    tokens = make_scored_tokens(folder / "tokens", tokenizer)
    model = Transformer(tiny_config())
    model.initialize(0, "depth")
    early = make_model(folder / "early", train(model, tokens, 40), tokenizer)
    late = make_model(folder / "model", train(model, tokens, 80, seed=1), tokenizer)
    return World(tokenizer, tokens, make_preferences(folder / "preferences"), early, late)
