"""Which bits depend on what: on the number of threads only where docs/training.md says so, on runs never.

Everywhere the same number of threads gives the same bits, in fp32 and INT8 any number; in bf16 as far as the processor
allows (tests/helpers/processor.py). That compiled kernels and those loaded from the disk agree is in test_jit.
"""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from model.network.head import IGNORED
from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.objectives import NextToken, Objective, Preference
from model.training.precision.int8 import int8_linear, use_int8
from tests.helpers.processor import bf16_bits_hold_to, using

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
THREADS = (1, 2, 3)
# rows, inner of x wᵀ, outputs (the inner of g w); gᵀ x sums over the rows. Few rows against an inner of 512 and more
# are what oneDNN's AMX kernels divide among threads; 777 rows and more what MKL divides.
SHAPES = [
    (1, 64, 131), (7, 448, 131), (7, 1536, 64), (33, 513, 256), (33, 4096, 100), (33, 100, 4096), (129, 49152, 64),
    (129, 64, 49152), (130, 192, 1000), (333, 448, 256), (700, 513, 704), (777, 192, 256), (1031, 704, 257),
]  # fmt: skip
# hidden, intermediate, vocabulary: the widest inner dimension is the vocabulary's, in the gradient of the last hidden.
MODELS = [(64, 176, 447), (192, 513, 1000), (64, 176, 49152)]
STAGES = ("pretrain", "sft", "dpo")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(precision: Precision, shape: tuple[int, int, int], threads: int) -> list[Tensor]:
    """x wᵀ, g w and gᵀ x, as a matrix of the network computes them."""
    rows, inner, outputs = shape
    x, w = noise(rows, inner, seed=1).requires_grad_(), noise(outputs, inner, seed=2).requires_grad_()
    with using(threads), torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        y = int8_linear(x, w) if precision == "int8" else torch.nn.functional.linear(x, w)
        gx, gw = torch.autograd.grad(y, (x, w), noise(rows, outputs, seed=3).to(y.dtype))
    return [y.detach(), gx, gw]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(precision: Precision, shape: tuple[int, int, int]) -> None:
    rows, inner, outputs = shape
    one = products(precision, shape, 1)
    summed_over = {"x wᵀ": inner, "g w": outputs, "gᵀ x": rows}
    for threads in THREADS:
        found, again = products(precision, shape, threads), products(precision, shape, threads)
        for name, a, b, first in zip(summed_over, found, again, one):
            assert torch.equal(a, b), f"two runs of {name} with {threads} threads differ"
            if precision != "bf16" or summed_over[name] <= bf16_bits_hold_to():
                assert torch.equal(a, first), f"{name} differs between 1 and {threads} threads"


@dataclass(frozen=True)
class Model:
    """A small transformer without the zeros and symmetries of first weights, under a stage's loss."""

    stage: str
    precision: Precision
    sizes: tuple[int, int, int]

    def objective(self) -> Objective:
        hidden, intermediate, vocabulary = self.sizes
        transformer = Transformer(
            ModelConfig(
                vocab_size=vocabulary, hidden_size=hidden, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32,
                intermediate_size=intermediate, context_length=160,
            )
        )  # fmt: skip
        with torch.no_grad():
            for number, parameter in enumerate(transformer.parameters()):
                if parameter.ndim == 2:
                    parameter.copy_(0.05 * noise(*parameter.shape, seed=number))
        if self.precision == "int8":
            use_int8(transformer)
        return Preference(transformer, 0.1, "sigmoid", 0.0, 0.0) if self.stage == "dpo" else NextToken(transformer)

    def batch(self) -> dict[str, Tensor]:
        """Rows as a stage packs them: documents, answers alone, or pairs in rows trimmed to an odd length."""
        rows, length = (5, 37) if self.stage == "dpo" else (3, 159)
        ids = torch.randint(0, self.sizes[2], (rows, length + 1), generator=torch.Generator().manual_seed(4))
        owners = torch.arange(length).expand(rows, -1) * 2 // length
        labels = ids[:, 1:].clone()
        if self.stage != "pretrain":
            labels[:, : length // 3] = IGNORED
        batch = {"input_ids": ids[:, :-1], "labels": labels, "document_ids": owners, "label_bytes": torch.ones(rows)}
        if self.stage == "dpo":
            sequences = owners + 2 * torch.arange(rows)[:, None]
            counts = torch.stack([(labels[sequences == s] != IGNORED).sum() for s in range(2 * rows)])
            batch |= {"sequence_ids": sequences, "label_counts": counts, "reference_log_probs": torch.zeros(2 * rows)}
        return batch


def gradients(objective: Objective, batch: dict[str, Tensor], precision: Precision, threads: int) -> dict[str, Tensor]:
    objective.zero_grad()
    objective.train()
    with using(threads), torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        loss, _ = objective(batch)
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}


@pytest.mark.parametrize("sizes", MODELS, ids=str)
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(stage, precision) for stage in STAGES for precision in PRECISIONS if (stage, precision) != ("dpo", "int8")],
)
def test_gradients_of_the_three_stages(stage: str, precision: Precision, sizes: tuple[int, int, int]) -> None:
    model = Model(stage, precision, sizes)
    objective, batch = model.objective(), model.batch()
    # What a model in INT8 multiplies in bf16 is attention: short sums, and a thread takes whole heads.
    widest = max(*sizes, batch["input_ids"].numel()) if precision == "bf16" else 0
    one = gradients(objective, batch, precision, 1)
    assert all(gradient.any() for gradient in one.values())
    for threads in THREADS:
        found = gradients(objective, batch, precision, threads)
        again = gradients(objective, batch, precision, threads)
        assert [n for n in one if not torch.equal(found[n], again[n])] == [], f"two runs with {threads} threads differ"
        if widest <= bf16_bits_hold_to():
            assert [n for n in one if not torch.equal(found[n], one[n])] == [], f"1 and {threads} threads differ"
