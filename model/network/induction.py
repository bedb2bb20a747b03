"""An induction head in the first weights: what training is slow to find costs nothing to write down.

One head of the first layer looks at the previous token and notes it in the residual stream; one of the second layer
looks for the place whose note is the present token, and so stands on what followed it there (Olsson et al. 2022,
arXiv:2209.11895), which the output matrix, if it is one of its own, then expects again. At 3M parameters no such head
forms within 4M tokens by itself: the loss is the same at position 250 as at position 50. With it the loss falls along
the row, and is lower by 0.11 bits per byte after 1.5M tokens and by 0.07 after 4M (docs/LOG.md). All of it is trained
like any other weight, and the architecture stays what it was. Starting attention from weights with a purpose is
"mimetic initialization" (Trockman and Kolter 2023, arXiv:2305.09828), which has another purpose in mind.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.network.rope import rope_frequencies
from model.network.shape import ModelConfig

# What is "worse" below is in bits per byte in domain after 1.5M tokens at width 192 (docs/LOG.md, 2026-11-26).
CONSTANT = 10.0  # the first dimension of every token's embedding, in deviations of the others; 6.25 is worse by 0.005
NOTE = 2.5  # a noted token beside the embedding of the place itself; 1.25 is worse by 0.005, 5 equal
COPIED = 1.25  # what is copied beside it; copy and expectation are worth 0.016
EXPECTED = 0.05  # the output matrix's weight on that: the token itself gains about a nat, others a fifth of it
FAST_PAIRS = 3 / 16  # of a head's rotary pairs: those that tell one position from the next
POSITION = 0.5  # weight on the constant: queries and keys are almost position alone; a quarter of it is worse by 0.010
OTHER_INPUTS = 0.3  # what is left of the weights on all else, so that training can go elsewhere


@torch.no_grad()
def plant_induction_head(config: ModelConfig, weights: Mapping[str, Tensor], embedding_std: float) -> None:
    """Overwrite some random weights of the first two layers; a model of one layer has no place for it and stays.

    weights: a model's parameters by name.

    Queries and keys can depend on position alone because the first dimension of the embedding is the same for every
    token. The heads are those of the first key-value head in each layer. Of a group that shares the keys which the
    previous token is found by, the second query head finds the token before it, the third the one before that.
    """
    if config.num_layers < 2:  # the note is written by one layer and read by the next
        return
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, 0] = CONSTANT * embedding_std
    dims = _slow_dims(config)
    # Dimensions of the residual stream: a part of each token's embedding, the note of it, and what is copied.
    read = torch.arange(1, 1 + len(dims))
    noted, copied = read + len(dims), read + 2 * len(dims)
    embedding[:, noted] = 0  # the note stands there alone: 0.012 bits per byte at 1.5M tokens
    queries, keys, values, outputs = (
        [weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for layer in (0, 1)] for name in "qkvo"
    )
    _look_back(config, queries[0], keys[0])
    # Single coordinates: random directions were no better (1.6743 for 1.6725).
    _pick(values[0], dims, read)
    outputs[0][noted, dims] = NOTE * embedding_std
    head = slice(config.head_dim)  # one head: a second brought 0.002 more
    queries[1][head] = 0
    keys[1][head] = 0
    _pick(queries[1], dims, read)
    _pick(keys[1], dims, noted)
    if not config.tied_embeddings:
        embedding[:, copied] = 0
        _pick(values[1], dims, read)
        outputs[1][copied, dims] = COPIED * embedding_std
        weights["lm_head.weight"][:, copied] += EXPECTED * embedding[:, read]


def _slow_dims(config: ModelConfig) -> Tensor:
    """Dimensions of a head whose rotary pairs turn slowest, where content can be compared over any distance; at most as
    many as the residual stream has room for three times."""
    half = config.head_dim // 2
    # Half of a head's 64: 44 compared dimensions were no better than these 32 (1.6634 for 1.6600).
    slow = torch.arange(half // 2, half)
    return torch.cat((slow, slow + half))[: (config.hidden_size - 1) // 3]


def _look_back(config: ModelConfig, queries: Tensor, keys: Tensor) -> None:
    """Make the first key-value head's keys, and its group's queries, meet at distances 1, 2, ... in turn."""
    half = config.head_dim // 2
    fast = torch.arange(max(1, round(half * FAST_PAIRS)))
    angles = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)[fast]
    size = POSITION * (half / len(fast)) ** 0.5 * 2**0.5
    for head in range(config.num_heads // config.num_kv_heads):
        rows = head * config.head_dim + fast
        turned = angles * (head + 1)
        _set_constant_input(queries, head, config.head_dim)
        # Turned back by head + 1 positions, so that the key that far before meets it best.
        queries[rows, 0] = size * turned.cos()
        queries[rows + half, 0] = -size * turned.sin()
    _set_constant_input(keys, 0, config.head_dim)
    keys[fast, 0] = size


def _set_constant_input(weight: Tensor, head: int, head_dim: int) -> None:
    rows = slice(head * head_dim, (head + 1) * head_dim)
    weight[rows] *= OTHER_INPUTS
    weight[rows, 0] = 0


def _pick(weight: Tensor, outputs: Tensor, inputs: Tensor) -> None:
    """Let each of `outputs` be one of `inputs`."""
    weight[outputs] = 0
    weight[outputs, inputs] = 1
