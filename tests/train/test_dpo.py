"""Preference optimisation as a stage: TRL's loss on the same pairs, a kept reference, pairs that teach nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.training.objectives import Preference
from model.training.packing import PairBatches
from model.training.parallel import Placement
from model.training.place import place
from model.training.settings import OptimizerSettings
from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.execution import Execution
from tasks.mechanism.observe import Silent
from tasks.mechanism.sections import merge
from tasks.mechanism.stage import Artifact, StageRun, build, obtain
from tasks.mechanism.store import Store
from tasks.models.folder import load_model
from tasks.train.dpo import DpoConfig, dpo, dpo_job, encode_pairs, reference_log_probs
from tasks.train.pretrain import pretrain
from tests.helpers.training import make_preferences, make_tokenizer, make_tokens, tiny_pretrain

Inputs = dict[str, Artifact]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = make_tokenizer(folder / "tokenizer")
    tokens = make_tokens(folder / "tokens", tokenizer)
    execution = Execution(home=folder / "home", threads=1)
    policy = build(pretrain, tiny_pretrain(), {"tokens": tokens, "tokenizer": tokenizer}, execution)
    return {"model": policy, "preferences": make_preferences(folder / "preferences")}


def tiny(**changes: Any) -> DpoConfig:
    rates = dict.fromkeys(("learning_rate", "embedding_learning_rate", "head_learning_rate"), 1e-3)
    defaults = {
        "batches": {"sequence_length": 64, "batch_pairs": 8, "steps": 20},
        "optimizer": rates,
        "loop": {"evaluate_every": 10},
        "precision": "fp32",
    }
    return DpoConfig(**merge(defaults, changes))


def test_it_learns_which_answer_is_better(inputs: Inputs, execution: Execution) -> None:
    metrics = obtain(dpo, tiny(), inputs, execution).manifest.metrics
    assert metrics["train_pairs"] == 32 and metrics["validation_pairs"] == 8
    assert metrics["reward_accuracy"] == 1 and metrics["reward_margin"] > 0.1
    assert metrics["val_loss"] < np.log(2) and metrics["val_reward_margin"] == metrics["reward_margin"]


def test_label_smoothing_goes_with_its_losses_alone() -> None:
    assert tiny(loss_type="exo_pair", label_smoothing=0.001).label_smoothing == 0.001
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.1, but the loss 'sigmoid' takes none"):
        tiny(label_smoothing=0.1)
    with pytest.raises(ValueError, match="the loss 'exo_pair' needs some"):
        tiny(loss_type="exo_pair")


def pair_rows(inputs: Inputs) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(inputs["preferences"].path / "train.parquet").to_pylist()
    return rows


def test_before_training_the_loss_is_log_2(inputs: Inputs) -> None:
    folder = inputs["model"].path
    pairs = encode_pairs(Tokenizer.load(folder), pair_rows(inputs)[:10], 64)
    parallel = place(Preference(load_model(folder), 0.1, "sigmoid", 0.0, 0.0), OptimizerSettings(), "fp32", Placement())
    for at_once in (1, 3, 16):
        found = reference_log_probs(parallel, PairBatches(pairs.sequences, None, 64, 4, 0), np.arange(10), at_once)
        batch = PairBatches(pairs.sequences, found, 64, 4, 0).batch(np.arange(10), 0)
        sums = parallel.evaluate(batch.tensors(parallel.device)).tolist()
        assert sums[0] / 10 == pytest.approx(np.log(2), rel=1e-5) and sums[1] == 10


@pytest.mark.slow
def test_loss_and_log_probs_are_those_of_trl(inputs: Inputs, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    folder = inputs["model"].path
    execution = Execution(home=tmp_path / "home", threads=1)
    other = build(dpo, tiny(batches={"steps": 5}), inputs, execution).path
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in pair_rows(inputs)[:8]]
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, save_strategy="no",
        max_length=512, per_device_train_batch_size=8, max_steps=1, beta=0.3, loss_type=["sigmoid"],
        precompute_ref_log_probs=True, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(other),
        ref_model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, dict(batch)))
    their_chosen = np.sort(np.array(trainer.train_dataset["ref_chosen_logps"], dtype=np.float32))

    pairs = encode_pairs(Tokenizer.load(folder), rows, 64)
    bare = PairBatches(pairs.sequences, None, 64, 8, 0)
    reference = place(Preference(load_model(folder), 0.3, "sigmoid", 0, 0), OptimizerSettings(), "fp32", Placement())
    found = reference_log_probs(reference, bare, np.arange(8), 8)
    assert np.sort(found[::2]) == pytest.approx(their_chosen, abs=1e-3)
    policy = place(Preference(load_model(other), 0.3, "sigmoid", 0, 0), OptimizerSettings(), "fp32", Placement())
    packed = PairBatches(pairs.sequences, found, 64, 8, 0).batch(np.arange(8), 0)
    ours = float(policy.evaluate(packed.tensors(policy.device))[0]) / 8
    assert abs(ours - np.log(2)) > 1e-3  # the two models differ, so the comparison says something
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_an_interrupted_run_keeps_its_reference(inputs: Inputs, tmp_path: Path) -> None:
    """What lies in scratch is used, not computed again: here a reference that could never have been computed."""
    cfg, execution = tiny(batches={"steps": 1}), Execution(home=tmp_path / "home", threads=1)
    rewards = []
    for offset in (0.0, 5.0):
        scratch = tmp_path / str(offset)
        scratch.mkdir()
        if offset:
            for name in ("train", "validation"):
                np.save(scratch / f"reference_{name}.npy", np.load(tmp_path / "0.0" / f"reference_{name}.npy") - offset)
        run = StageRun(scratch, execution, Store(execution.home), Silent())
        dpo_job(run, cfg, {name: artifact.path for name, artifact in inputs.items()})
        rewards.append(run.metrics["val_chosen_reward"])
    assert rewards[1] - rewards[0] == pytest.approx(5.0 * cfg.beta, rel=1e-2)


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def test_pairs_that_teach_nothing_are_left_out(inputs: Inputs) -> None:
    tokenizer = Tokenizer.load(inputs["model"].path)
    prompt, good, bad = message("user", "why?"), message("assistant", "because"), message("assistant", "no")
    rows = [
        {"prompt": prompt, "chosen": good, "rejected": bad},
        {"prompt": prompt, "chosen": good, "rejected": message("assistant", " ")},
        {"prompt": prompt, "chosen": good, "rejected": good},
        {"prompt": message("user", "why? " * 100), "chosen": good, "rejected": bad},
        {"prompt": prompt, "chosen": message("assistant", "because " * 100), "rejected": bad},
    ]
    pairs = encode_pairs(tokenizer, rows, 64)
    assert (len(pairs.sequences) // 2, pairs.empty, pairs.equal, pairs.too_long) == (2, 1, 1, 1)
    assert pairs.sequences.positions.max() == 64
    sequences = pairs.sequences
    first = slice(sequences.starts[0], sequences.starts[1])
    learnt = sequences.ids[first][sequences.learnt[first]]
    assert tokenizer.decode(learnt.tolist()) == "because<|im_end|>\n"


def test_no_usable_pair_is_refused(inputs: Inputs, execution: Execution) -> None:
    with pytest.raises(ValueError, match="No training pair is usable"):
        obtain(dpo, tiny(batches={"sequence_length": 8}), inputs, execution)
