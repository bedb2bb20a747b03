"""What the training stages share: their settings reach the optimizer."""

from types import SimpleNamespace
from typing import cast

from model.network.transformer import Transformer
from model.training.objectives import NextToken
from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import TrainingRun
from tasks.train.job import place_objective
from tests.helpers.training import VOCAB_SIZE, tiny_pretrain


def test_rates_momentum_and_decay_reach_the_optimizer() -> None:
    settings = {
        "matrix_learning_rate": 0.011, "learning_rate": 0.012, "embedding_learning_rate": 0.013,
        "head_learning_rate": 0.014, "momentum": 0.75, "weight_decay": 0.15,
    }  # fmt: skip
    cfg = tiny_pretrain(optimizer=settings)
    run = cast(TrainingRun, SimpleNamespace(execution=Execution(device="cpu", threads=1)))
    parallel = place_objective(run, cfg, NextToken(Transformer(cfg.model.shape(VOCAB_SIZE))))
    groups = {group["name"]: group for group in parallel.optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "matrix": 0.011, "vector": 0.012, "embedding": 0.013, "head": 0.014,
    }  # fmt: skip
    assert (groups["matrix"]["momentum"], groups["matrix"]["weight_decay"]) == (0.75, 0.15)
