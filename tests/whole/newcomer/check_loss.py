"""With the loss added: `--set` chooses it, and it is the formula of its paper."""

import torch

from flows.recipe import load_plan
from model.training.preference import PairLogProbs, dpo_loss
from tasks.train.dpo import DpoConfig


def test_the_loss_can_be_chosen() -> None:
    assert load_plan("demo", ["dpo.loss_type=aot_unpaired"]).recipe.dpo.loss_type == "aot_unpaired"
    assert "aot_unpaired" in DpoConfig.model_json_schema()["properties"]["loss_type"]["enum"]
    chosen, rejected, zero, lengths = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]), torch.zeros(2), torch.ones(2)
    found = dpo_loss(PairLogProbs(chosen, rejected, zero, zero, lengths, lengths), 1.0, "aot_unpaired").loss
    torch.testing.assert_close(found, torch.log1p(torch.tensor(-1.0).exp()))  # both margins of the sorted are 1
