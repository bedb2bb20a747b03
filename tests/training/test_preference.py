"""Every loss of DPO: its direction, its bounds, and its value against TRL's own trainer."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.head import IGNORED, token_log_probs
from model.training.preference import PREFERENCE_LOSSES, SMOOTHED_LOSSES, PairLogProbs, dpo_loss


def pairs() -> PairLogProbs:
    stream = torch.Generator().manual_seed(3)
    chosen, rejected, a, b = (-40 + 8 * torch.randn(6, generator=stream) for _ in range(4))
    lengths = torch.tensor([5, 9, 30, 7, 12, 20])
    return PairLogProbs(chosen.requires_grad_(), rejected.requires_grad_(), a, b, lengths, lengths.flip(0))


def test_dpo_reports_rewards() -> None:
    found = dpo_loss(pairs(), beta=0.2)
    data = pairs()
    torch.testing.assert_close(found.chosen_rewards, 0.2 * (data.chosen - data.reference_chosen))
    torch.testing.assert_close(found.rejected_rewards, 0.2 * (data.rejected - data.reference_rejected))
    torch.testing.assert_close(found.loss, -F.logsigmoid(found.chosen_rewards - found.rejected_rewards).mean())
    assert not found.chosen_rewards.requires_grad and not found.rejected_rewards.requires_grad


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
def test_dpo_prefers_the_chosen(loss_type: str) -> None:
    """Each loss pushes the rejected answer down relative to the chosen one."""
    data = pairs()
    smoothing = 0.1 if loss_type in SMOOTHED_LOSSES else 0.0
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
        dpo_loss(pairs(), 0.1, "kto")


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
    for loss_type in PREFERENCE_LOSSES:
        smoothing = 0.1 if loss_type in SMOOTHED_LOSSES else 0.0
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
