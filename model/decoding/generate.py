"""Text from a model: a key-value cache, and a stream of tokens that ends where it should.

Two decoders keep the past and give the logits of the next token: `TorchDecoder` here, on any device, and the compiled
`model.decoding.engine.Engine` on a CPU. The rest (what to pick, when to stop) is the same for both.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from model.decoding.sampling import GREEDY, Sampler, Sampling
from model.network.past import Past
from model.network.transformer import Transformer
from model.vocabulary.tokenizer import Tokenizer

Floats = NDArray[np.float32]


class Decoder(Protocol):
    """A model with a memory of the tokens it has read."""

    @property
    def context_length(self) -> int:
        """The most tokens that it can hold."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens read so far."""

    def append(self, ids: Sequence[int]) -> Floats:
        """Read more tokens (at least one); the logits of the token after them: (vocab,)."""

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""


class TorchDecoder:
    """A `Transformer` that remembers keys and values, one sequence."""

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval()
        self.context_length = model.config.context_length
        self.tokens: list[int] = []
        self._past = [Past(self.context_length) for _ in model.model.layers]

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        del self.tokens[length:]

    @torch.inference_mode()
    def append(self, ids: Sequence[int]) -> Floats:
        """Read more tokens; the logits of the token after them: (vocab,)."""
        check_room(self, len(ids))
        for past in self._past:  # also of what a call that was interrupted has left
            past.truncate(len(self.tokens))
        input_ids = torch.tensor([list(ids)], device=self.model.model.norm.weight.device)
        last = self.model.hidden(input_ids, past=self._past)[0, -1]
        self.tokens += ids
        return self.model.logits(last).float().cpu().numpy()


def check_room(decoder: Decoder, more: int) -> None:
    """Refuse to read past the context.

    Raises:
        ValueError: with both lengths.
    """
    wanted = len(decoder.tokens) + more
    if wanted > decoder.context_length:
        raise ValueError(
            f"The text has {wanted} tokens, but the model reads at most {decoder.context_length} (context_length). "
            "Shorten the conversation, or train with a longer context."
        )


@dataclass
class Generation:
    """A stream of new tokens; iterate over it. `finish_reason` is known at its end: "stop" or "length"."""

    decoder: Decoder
    prompt: Sequence[int]
    stop_ids: Set[int]
    max_tokens: int
    sampling: Sampling = GREEDY
    finish_reason: str = ""

    def __iter__(self) -> Iterator[int]:
        """New tokens, the stop token not among them. Of the prompt only what the decoder has not yet read is read."""
        decoder, prompt = self.decoder, list(self.prompt)
        if not prompt:
            raise ValueError("The prompt is empty: a model needs at least one token to go on from.")
        shared = _common_prefix(decoder.tokens, prompt[:-1])  # the last is read again: its logits are wanted
        decoder.truncate(shared)
        check_room(decoder, len(prompt) - shared)
        sampler = Sampler(self.sampling)
        new = prompt[shared:]
        self.finish_reason = "length"  # unless a stop token comes first
        for _ in range(self.max_tokens):
            if len(decoder.tokens) + len(new) > decoder.context_length:
                return
            token = sampler.pick(decoder.append(new), decoder.tokens)
            if token in self.stop_ids:
                self.finish_reason = "stop"
                return
            yield token
            new = [token]


def generate(
    decoder: Decoder, prompt: Sequence[int], stop_ids: Set[int], max_tokens: int, sampling: Sampling = GREEDY
) -> list[int]:
    """The whole continuation of `prompt`, without the stop token."""
    return list(Generation(decoder, prompt, stop_ids, max_tokens, sampling))


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return index
    return min(len(a), len(b))


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Pieces of text as tokens come in; a character that several tokens spell appears with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        piece = decoder.decode(tokenizer.decode_bytes([token]))
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest
