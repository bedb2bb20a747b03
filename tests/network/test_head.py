"""The fused losses against torch's own functions and TRL's DPO trainer."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.head import (
    IGNORED,
    DPOLossType,
    PairLogProbs,
    dpo_loss,
    linear_cross_entropy,
    plain_linear_cross_entropy,
    token_log_probs,
)


def problem(vocab: int = 50, dim: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 41, dim, generator=stream).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=stream).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (3, 41), generator=stream)
    labels[0, :7] = IGNORED
    labels[2, -3:] = IGNORED
    return hidden, weight, labels


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one short."""
    monkeypatch.setattr("model.network.head.CHUNK_LOGITS", {"cpu": 50 * 32})


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_cross_entropy_equals_torch(z_loss: float, reduction: str) -> None:
    hidden, weight, labels = problem()
    fused = linear_cross_entropy(hidden, weight, labels, z_loss, reduction)
    plain = plain_linear_cross_entropy(hidden, weight, labels, z_loss, reduction)
    torch.testing.assert_close(fused, plain)
    for found, wanted in zip(*(torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (fused, plain))):
        torch.testing.assert_close(found, wanted)


def test_plain_is_torch_cross_entropy() -> None:
    hidden, weight, labels = problem()
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(plain_linear_cross_entropy(hidden, weight, labels), expected)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradcheck(z_loss: float) -> None:
    hidden, weight, labels = problem(vocab=7, dim=3, dtype=torch.float64)
    part = (hidden[:1, 4:10].detach().requires_grad_(), weight)
    target = labels[:1, 4:10]
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, target, z_loss), part)
    assert torch.autograd.gradcheck(lambda h, w: token_log_probs(h, w, target), part)


def test_bf16_is_as_close_to_fp32_as_autocast() -> None:
    hidden, weight, labels = problem(vocab=300, dim=64)
    exact = torch.autograd.grad(plain_linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        fused = linear_cross_entropy(hidden, weight, labels)
        plain = plain_linear_cross_entropy(hidden, weight, labels)
    assert fused.dtype == torch.float32
    assert abs(float((fused - plain).detach())) < 2e-3
    for loss in (fused, plain):
        for found, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), exact):
            assert found.dtype == torch.float32
            assert float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_needs_a_gradient_gets_one(frozen: str) -> None:
    hidden, weight, labels = problem()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels).backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_without_labels_the_loss_is_zero() -> None:
    hidden, weight, labels = problem()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_labels_of_another_shape_are_refused() -> None:
    hidden, weight, labels = problem()
    with pytest.raises(ValueError, match=r"\(3, 41\).*\(3, 40\)"):
        linear_cross_entropy(hidden, weight, labels[:, 1:])


@pytest.mark.parametrize("autocast", [False, True])
def test_nan_is_not_hidden(autocast: bool) -> None:
    hidden, weight, labels = problem()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = linear_cross_entropy(
            hidden.detach().clone().index_fill_(1, torch.tensor([20]), math.nan), weight, labels
        )
    assert loss.isnan()


@pytest.mark.parametrize("autocast", [False, True])
def test_token_log_probs_equal_log_softmax(autocast: bool) -> None:
    hidden, weight, labels = problem()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = token_log_probs(hidden, weight, labels)
    logits = hidden @ weight.T
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
    tolerance = {"atol": 0.08, "rtol": 0.02} if autocast else {}
    torch.testing.assert_close(found, expected, **tolerance)
    scale = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight), scale) for x in (found, expected))):
        assert float((a - b).norm() / b.norm()) < (0.02 if autocast else 1e-5)


def pairs() -> PairLogProbs:
    stream = torch.Generator().manual_seed(3)
    chosen, rejected, a, b = (-40 + 8 * torch.randn(6, generator=stream) for _ in range(4))
    lengths = torch.tensor([5, 9, 30, 7, 12, 20])
    return PairLogProbs(chosen.requires_grad_(), rejected.requires_grad_(), a, b, lengths, lengths.flip(0))


def test_dpo_reports_rewards() -> None:
    found = dpo_loss(pairs(), beta=0.2)
    data = pairs()
    torch.testing.assert_close(found.chosen_rewards, 0.2 * (data.chosen - data.reference_chosen))
    assert float(found.reward_accuracy) == float((found.chosen_rewards > found.rejected_rewards).float().mean())
    torch.testing.assert_close(found.reward_margin, (found.chosen_rewards - found.rejected_rewards).mean())
    torch.testing.assert_close(found.loss, -F.logsigmoid(found.chosen_rewards - found.rejected_rewards).mean())
    assert not found.chosen_rewards.requires_grad


@pytest.mark.parametrize("loss_type", get_args(DPOLossType))
def test_dpo_prefers_the_chosen(loss_type: DPOLossType) -> None:
    """Each loss pushes the rejected answer down relative to the chosen one."""
    data = pairs()
    smoothing = 0.1 if loss_type in ("robust", "exo_pair") else 0.0
    dpo_loss(data, 0.1, loss_type, smoothing).loss.backward()
    chosen, rejected = data.chosen.grad, data.rejected.grad
    assert chosen is not None
    assert rejected is not None
    assert float((rejected - chosen).sum()) > 0


def test_bad_dpo_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(pairs(), beta=0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(pairs(), 0.1, "robust", 0.5)
    with pytest.raises(ValueError, match="Unknown DPO loss type 'kto'"):
        dpo_loss(pairs(), 0.1, "kto")  # type: ignore[arg-type]


@pytest.mark.slow
def test_dpo_losses_equal_trl(tmp_path: Path) -> None:
    """Every loss type on one batch through TRL's own trainer, with its log-probabilities."""
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab={**alphabet, "<pad>": 256, "<eos>": 257}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    shape = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    policy, reference = (LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)) for _ in range(2))
    rows = [{"prompt": f"say {n}", "chosen": "yes " * n, "rejected": "no, never " * (5 - n)} for n in range(1, 5)]
    for loss_type in get_args(DPOLossType):
        smoothing = 0.1 if loss_type in ("robust", "exo_pair") else 0.0
        config = DPOConfig(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            max_steps=1,
            beta=0.3,
            loss_type=[loss_type],
            label_smoothing=smoothing,
            disable_tqdm=True,
        )
        data = Dataset.from_list(rows)
        trainer = DPOTrainer(policy, ref_model=reference, args=config, train_dataset=data, processing_class=tokenizer)
        trainer.model.eval()
        batch = dict(next(iter(trainer.get_train_dataloader())))
        with torch.no_grad():
            expected = trainer.compute_loss(trainer.model, dict(batch))
            found = dpo_loss(hf_pairs(policy, reference, batch), 0.3, loss_type, smoothing).loss
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=f"{loss_type}: {found} {expected}")


def hf_pairs(policy: torch.nn.Module, reference: torch.nn.Module, batch: dict[str, Tensor]) -> PairLogProbs:
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    sums = []
    for model in (policy, reference):
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        sums.append(token_log_probs(hidden, model.lm_head.weight, shifted).sum(1).chunk(2))
    lengths = (labels != IGNORED).sum(1).chunk(2)
    return PairLogProbs(*sums[0], *sums[1], *lengths)
