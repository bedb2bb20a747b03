"""FlexAttention on a GPU: compiled once, with the blocks that packed documents leave to look at found once a batch."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.kernels.block_attention import document_starts

_attend = torch.compile(flex_attention)  # uncompiled it would hold all scores
_find_blocks = torch.compile(create_block_mask)  # uncompiled it holds a mask of all pairs of positions


def block_mask(document_ids: Tensor | None, queries: int, keys: int, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of queries meets: causal, and within documents where ids (batch, keys) are given.

    The queries are the last positions of the keys.
    """
    offset = keys - queries
    starts = None if document_ids is None else document_starts(document_ids)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        earlier = query + offset >= key
        return earlier if starts is None else earlier & (key >= starts[batch, query + offset])

    rows = None if document_ids is None else len(document_ids)
    found: BlockMask = _find_blocks(sees, rows, None, queries, keys, device=device)
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention by blocks; shapes as in `attention.attention`."""
    out: Tensor = _attend(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out
