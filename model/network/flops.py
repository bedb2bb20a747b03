"""What a model costs before it exists: parameters and FLOPs per token, from its shape alone."""

from model.network.shape import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """All parameters; a tied embedding counts once."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    norms = config.num_layers * (2 * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0))
    return embeddings + config.num_layers * _layer_matrices(config) + norms + config.hidden_size  # the last: final norm


def _layer_matrices(config: ModelConfig) -> int:
    attention = 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)  # q and o; k and v
    return attention + 3 * config.hidden_size * config.intermediate_size  # gate, up, down


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that multiply every token: the layers' matrices and the head, not the embedding look-up."""
    return config.num_layers * _layer_matrices(config) + config.vocab_size * config.hidden_size


def forward_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Multiplications and additions of one token's forward pass; attention counted over all `seq_len` keys.

    That is the convention of PaLM (arXiv:2204.02311, appendix B) and of torch's FlopCounterMode; causal kernels do
    about half of the attention part.
    """
    # Scores and mixture are a multiplication and an addition each.
    attention = config.num_layers * 4 * config.num_heads * config.head_dim * seq_len
    return 2 * matmul_parameters(config) + attention


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Training FLOPs of one token: the backward pass costs two forwards."""
    return 3 * forward_flops_per_token(config, seq_len)
