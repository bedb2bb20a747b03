"""Direct preference optimisation: make the better answer of each pair likelier than the worse one, near the policy.

The reference is the policy as it came in; its log-probabilities are computed once, before training, and kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from model.training.preference import PREFERENCE_LOSSES, SMOOTHED_LOSSES
from model.training.settings import OptimizerSettings, PairSettings, ScheduleSettings
from tasks.chats.encode import EncodedPairs, encode_pairs, read_pairs
from tasks.mechanism.launch.processes import launch
from tasks.mechanism.observe import TrainingRun
from tasks.mechanism.stage import Artifact, StageRun, stage
from tasks.train.job import TrainingConfig, TrainingData, check_length, finish, is_first_process, place_objective, train

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.training.data import Ints
    from model.training.packing import PairBatches, Sequences
    from model.training.parallel import Parallel

    Floats = NDArray[np.float32]
    LossName = str
else:
    LossName = Literal[tuple(PREFERENCE_LOSSES)]  # one list: a new loss is a new value here


class DpoConfig(TrainingConfig):
    """The preference loss, and learning rates low enough to stay near the reference."""

    # The default of TRL.
    beta: float = Field(
        0.1, gt=0, le=10, description="Strength of the KL penalty that keeps the policy near the reference."
    )
    loss_type: LossName = Field("sigmoid", description="Preference loss, by TRL's name for it.")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Assumed probability that a pair's labels are flipped; of robust and exo_pair only.",
    )
    sft_weight: float = Field(
        0.0, ge=0, le=100, description="Weight of the chosen answer's negative log-likelihood per token in the loss."
    )
    batches: PairSettings = Field(PairSettings(), description="Batch size, sequence length and number of epochs.")
    # 60 steps: reward accuracy 0.805 by AdamW at 5e-5, 0.77 at 3e-4, 0.81 by Muon (docs/LOG.md, 2026-11-22).
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(
            kind="adamw",
            matrix_learning_rate=5e-4,
            learning_rate=5e-5,
            embedding_learning_rate=5e-5,
            head_learning_rate=5e-5,
        ),
        description="Optimizer, learning rates, momentum, weight decay and clipping.",
    )
    schedule: ScheduleSettings = Field(ScheduleSettings(kind="linear"), description="Learning-rate schedule.")
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        "bf16",
        description="Precision of the matrix products; weights stay in fp32. auto: the fastest of the processor. fp8: "
        "the layers' products. Not int8, whose rounding would differ between policy and reference.",
    )
    validation_pairs: int = Field(500, ge=1, description="Maximum number of preference pairs in the validation loss.")

    @model_validator(mode="after")
    def _smoothing_has_its_loss(self) -> "DpoConfig":
        if self.label_smoothing and self.loss_type not in SMOOTHED_LOSSES:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, but the loss '{self.loss_type}' takes none: set it "
                "to 0, or loss_type to 'robust' or 'exo_pair'"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:  # it takes log(label_smoothing)
            raise ValueError("label_smoothing is 0, but the loss 'exo_pair' needs some: TRL suggests 0.001")
        return self


def preference_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Loss, reward accuracy (share of pairs whose chosen answer has the higher reward), reward margin and rewards."""
    pairs = max(sums["pairs"], 1)
    return {
        "loss": sums["loss"] / pairs,
        "reward_accuracy": sums["correct"] / pairs,
        "reward_margin": sums["margin"] / pairs,
        "chosen_reward": sums["chosen_reward"] / pairs,
        "rejected_reward": sums["rejected_reward"] / pairs,
    }


def reference_log_probs(parallel: "Parallel", batches: "PairBatches", items: "Ints", pairs_at_once: int) -> "Floats":
    """Log-probability of the answers of the pairs `items` under the weights as they are now, before training.

    (2 * pairs,) with pairs = max(items) + 1; 0 for pairs that are not asked for.
    """
    import numpy as np
    import torch
    import torch.distributed as dist

    # (2P,): pair i has rows 2i (chosen) and 2i + 1 (rejected), as `encode_pairs` lays them out.
    found = np.zeros(2 * (int(items.max()) + 1), dtype=np.float32)
    for start in range(0, len(items), pairs_at_once * parallel.world):
        # Sharded models need every process in every forward pass: one that has nothing left repeats the last pair.
        first = min(start + parallel.rank * pairs_at_once, len(items) - 1)
        part = items[first : first + pairs_at_once]
        values = parallel.evaluate(batches.batch(part, 0).tensors(parallel.device)).float().cpu().numpy()
        found[2 * part], found[2 * part + 1] = values[::2], values[1::2]
    if parallel.world == 1:
        return found
    shared = torch.from_numpy(found).to(parallel.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)  # log-probabilities are at most 0, which is what others have
    result: Floats = shared.cpu().numpy()
    return result


def _with_reference(
    run: TrainingRun, cfg: DpoConfig, parallel: "Parallel", name: str, sequences: "Sequences", items: "Ints"
) -> "PairBatches":
    """Batches that know the reference's log-probabilities of `items`; what an interrupted run computed is used."""
    import numpy as np

    from model.training.packing import PairBatches

    path = run.scratch / f"reference_{name}.npy"
    length, pairs = cfg.batches.sequence_length, cfg.batches.batch_pairs
    pairs_at_once = max(1, run.execution.micro_batch_tokens // (2 * length))  # a pair fills two rows at most
    # Once, and before training: TRL takes 1,223 tokens a CPU-s with a live reference, 1,558 with its own kept.
    if path.exists():
        reference: Floats = np.load(path)
    else:
        bare = PairBatches(sequences, None, length, pairs, cfg.seed)
        reference = reference_log_probs(parallel, bare, items, pairs_at_once)
        if is_first_process():
            aside = path.with_suffix(".partial.npy")  # np.save would add .npy to any other ending
            np.save(aside, reference)
            # Whole or not there: a half reference would be taken after a restart for the whole one.
            aside.replace(path)
    return PairBatches(sequences, reference, length, pairs, cfg.seed)


def dpo_job(run: TrainingRun, cfg: DpoConfig, inputs: Mapping[str, Path]) -> None:
    """Train in this process, which may be one of several."""
    import numpy as np

    from model.training.data import visit
    from model.training.loop import Validation
    from model.training.objectives import Preference
    from model.vocabulary.tokenizer import Tokenizer
    from tasks.models.folder import load_model

    policy_dir, pairs_dir = inputs["model"], inputs["preferences"]
    transformer = load_model(policy_dir)
    length, pairs = cfg.batches.sequence_length, cfg.batches.batch_pairs
    check_length(length, transformer.config.context_length)
    tokenizer = Tokenizer.load(policy_dir)
    training = encode_pairs(tokenizer, read_pairs(pairs_dir / "train.parquet"), length)
    held_out = read_pairs(pairs_dir / "validation.parquet", cfg.validation_pairs)
    validation = encode_pairs(tokenizer, held_out, length)
    train_pairs, validation_pairs = len(training.sequences) // 2, len(validation.sequences) // 2
    if is_first_process():
        _say_left_out(run, training)
    _refuse_nothing(train_pairs, validation_pairs)
    parallel = place_objective(
        run, cfg, Preference(transformer, cfg.beta, cfg.loss_type, cfg.label_smoothing, cfg.sft_weight)
    )
    steps = cfg.batches.steps or max(1, round(cfg.batches.epochs * train_pairs / pairs))
    # Of pairs that no step will see no reference is needed; the batches walk by this very function.
    visited = np.unique(visit(cfg.seed, 0, steps * pairs, train_pairs))
    every_pair = np.arange(validation_pairs, dtype=np.int64)
    batches = _with_reference(run, cfg, parallel, "train", training.sequences, visited)
    measured = _with_reference(run, cfg, parallel, "validation", validation.sequences, every_pair)
    tokens = float(sum(batches.tokens(batches.items(step)) for step in range(steps)))
    validated = Validation(measured, every_pair)
    final = train(run, cfg, parallel, TrainingData(batches, validated, preference_figures, steps, tokens))
    # The chat ends at <|im_end|>; <|endoftext|> stays an end, as pretraining taught it.
    finish(run, parallel, policy_dir, ("<|im_end|>", "<|endoftext|>"))
    if is_first_process():
        figures = {
            "train_pairs": train_pairs,
            "validation_pairs": validation_pairs,
            "dropped_empty": training.empty,
            "dropped_too_long": training.too_long,
            "dropped_equal": training.equal,
            "steps": steps,
            "reward_accuracy": final["val_reward_accuracy"],
            "reward_margin": final["val_reward_margin"],
        }
        for name, value in {**figures, **final}.items():
            run.metric(name, value)


def _say_left_out(run: TrainingRun, pairs: EncodedPairs) -> None:
    if pairs.empty + pairs.too_long + pairs.equal:
        run.say(
            f"pairs left out: {pairs.empty} with an empty answer, {pairs.too_long} with a prompt longer than a row, "
            f"{pairs.equal} whose answers are the same"
        )


def _refuse_nothing(train_pairs: int, validation_pairs: int) -> None:
    for split, count in (("training", train_pairs), ("validation", validation_pairs)):
        if not count:
            raise ValueError(
                f"No {split} pair is usable: each has an empty answer, equal answers, or a prompt longer than "
                "dpo.batches.sequence_length. Give other pairs, or a longer sequence_length."
            )


@stage("dpo", version=2, rebuild="on-version", figures=("train_pairs", "reward_accuracy", "reward_margin"))
def dpo(run: StageRun, cfg: DpoConfig, model: Artifact, preferences: Artifact) -> None:
    """Write an aligned chat model in the Hugging Face layout."""
    launch(run, dpo_job, cfg, {"model": model, "preferences": preferences})
