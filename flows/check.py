"""What is known before the first stage: whether each training stage can run on the processes that it is to have.

Training checks it too, when it starts: after hours, where it is the second of three.
"""

from flows.recipe import Recipe
from tasks.mechanism.execution import Execution
from tasks.train.job import TrainingConfig


def check_training(recipe: Recipe, execution: Execution) -> None:
    """Refuse what training would refuse, by config alone.

    Raises:
        ValueError: a step that the processes cannot share evenly, or an optimizer that the strategy cannot run.
    """
    pretrain, sft, dpo = recipe.pretrain, recipe.sft, recipe.dpo
    windows = pretrain.batches
    first_batch = windows.initial_batch_tokens or windows.batch_tokens  # the others are this, doubled
    _check_share("pretrain", "batch_tokens", first_batch // windows.sequence_length, execution)
    _check_share("sft", "batch_tokens", sft.batches.rows_per_batch, execution)
    _check_share("dpo", "batch_pairs", dpo.batches.batch_pairs, execution)
    for name, config in {"pretrain": pretrain, "sft": sft, "dpo": dpo}.items():
        _check_optimizer(name, config, execution)


def _check_share(stage: str, field: str, items: int, execution: Execution) -> None:
    if items % execution.processes:
        raise ValueError(
            f"A step of {stage} has {items} {'pairs' if field == 'batch_pairs' else 'rows'}, which "
            f"{execution.processes} processes cannot share evenly. Use a larger {stage}.batches.{field}, or a number "
            "of processes that divides it."
        )


def _check_optimizer(stage: str, config: TrainingConfig, execution: Execution) -> None:
    if execution.strategy == "deepspeed" and config.optimizer.kind != "adamw":
        raise ValueError(
            f"{stage}.optimizer.kind is '{config.optimizer.kind}', which cannot run under the strategy 'deepspeed': "
            f"it cuts matrices into flat pieces. Use {stage}.optimizer.kind=adamw, or the strategy 'fsdp2' or 'ddp'."
        )
