"""The memory of a training step before it runs, from shapes alone: which micro-batch fits a device."""

from dataclasses import dataclass
from typing import Literal

from model.kernels.block_attention import QUERY_BLOCK
from model.network.flops import matmul_parameters, num_parameters
from model.network.head import CHUNK_LOGITS
from model.network.shape import ModelConfig, OptimizerName, Precision
from model.training.precision.int8_head import CHUNK_PROBABILITIES
from model.training.precision.int8_matrix import CHUNK_SUMS


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes on one device while a step's gradients are computed."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # what the forward pass keeps for the backward pass
    workspace: int  # bf16 copies of the weights, the head's gradient, one chunk of logits

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace


Layers = Literal["fused", "plain", "compiled"]
"""How layers compute: as kernels/autograd.py (a CPU in bf16), by torch's own functions (a GPU), or by torch.compile."""


@dataclass(frozen=True, kw_only=True)
class TrainingShape:
    """How a step runs: `tokens` in one micro-batch of rows of `seq_len`, state split over `shards` devices (FSDP)."""

    tokens: int
    seq_len: int
    precision: Precision = "bf16"
    optimizer: OptimizerName = "normuon"
    layers: Layers = "fused"
    device: Literal["cpu", "cuda"] = "cpu"
    recompute_layers: bool = False
    shards: int = 1


def memory_forecast(config: ModelConfig, shape: TrainingShape) -> MemoryForecast:
    """Memory of one training step, from the shapes alone; agrees with torch's saved tensors within 3 %.

    Activations of int8 count as bf16, which it keeps, and those of fp8 too, of which it keeps less: one byte for two.
    """
    parameters = num_parameters(config)
    matrices = matmul_parameters(config) - config.vocab_size * config.hidden_size  # of the layers
    states = 2 * parameters - (0 if shape.optimizer == "adamw" else matrices)  # Muon keeps one moment of a matrix
    layer = _layer_activation_bytes(config, shape)
    residual = 4 * config.hidden_size  # the residual stream, fp32
    if shape.recompute_layers:
        kept = config.num_layers * (residual + 2 * config.hidden_size) + layer  # all inputs and one layer at work
    else:
        kept = config.num_layers * layer
    narrow = 4 if shape.precision == "fp32" else 2
    ends = residual + 4 + narrow * config.hidden_size  # of the final norm and the head
    if shape.layers == "compiled":  # which do not keep what the first one and the final norm read
        ends += residual + narrow * config.hidden_size
    head = config.vocab_size * config.hidden_size
    copies = 0 if shape.precision == "fp32" else narrow * matmul_parameters(config)
    return MemoryForecast(
        weights=4 * parameters // shape.shards,  # master weights are fp32 in every precision
        gradients=4 * parameters // shape.shards,
        optimizer=4 * states // shape.shards,
        activations=shape.tokens * (kept + ends),
        workspace=copies + 4 * head + _chunk_bytes(config, shape),
    )


def _chunk_bytes(config: ModelConfig, shape: TrainingShape) -> int:
    """Logits of a chunk, and what they become: on a GPU another copy, elsewhere fp32, or INT8 beside its sums."""
    if shape.precision == "int8":
        return min(CHUNK_PROBABILITIES, shape.tokens * config.vocab_size) + 4 * CHUNK_SUMS
    narrow = 4 if shape.precision == "fp32" else 2
    logits = min(CHUNK_LOGITS[shape.device], shape.tokens * config.vocab_size)
    return logits * (2 * narrow if shape.device == "cuda" else narrow + 4)


def _layer_activation_bytes(config: ModelConfig, shape: TrainingShape) -> int:
    """Bytes that one layer keeps for each token."""
    narrow = 4 if shape.precision == "fp32" else 2
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    heads = q + 2 * kv
    if shape.layers == "fused":  # two norms, projections before and after rotation, probabilities, output, SwiGLU
        attended = (shape.seq_len + min(QUERY_BLOCK, shape.seq_len)) // 2  # keys that a query's block meets, on average
        probabilities = config.num_heads * attended
        return 2 * (4 * hidden + 4) + narrow * (2 * hidden + 2 * heads + probabilities + q + 3 * inner)
    if shape.layers == "compiled":  # of products their inputs; what lies between is computed again where it is used
        statistics = 8 + (8 * config.num_heads + 4 * config.num_kv_heads if config.qk_norm else 4 * config.num_heads)
        rotated = heads + q + (q + kv if config.qk_norm else 0)
        return 4 * hidden + statistics + narrow * (3 * hidden + rotated + 3 * inner)
    norms = 2 * (8 * hidden + 4)  # the stream and its normalised form, fp32
    inputs = 8 * hidden if shape.precision == "fp32" else narrow * 5 * hidden  # autocast copies once for each matrix
    qk_norm = (4 + narrow) * (q + kv) + 4 * (config.num_heads + config.num_kv_heads) if config.qk_norm else 0
    attention = narrow * (heads + q) + 4 * config.num_heads
    return norms + inputs + qk_norm + attention + narrow * 4 * inner
