"""Answer a conversation with a model from a folder, full or quantized, in a stream of text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from model.decoding.decoders import decoder_for
from model.decoding.generate import Decoder, Generation, stream_text
from model.decoding.sampling import GREEDY, Sampling
from model.network.transformer import Transformer
from model.vocabulary.chat_format import render_prompt
from model.vocabulary.tokenizer import Tokenizer
from tasks.models.folder import end_ids, load_any_model, load_tokenizer

Message = Mapping[str, str]


class ChatModel:
    """A model that answers. It keeps what it has read: the next turn of a conversation reads only what is new."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self.decoder, self.tokenizer, self.stop_ids = decoder, tokenizer, stop_ids

    @classmethod
    def load(cls, folder: Path) -> "ChatModel":
        """Load a model or quantized artifact.

        Raises:
            ValueError: the folder holds neither.
        """
        return cls.of(load_any_model(folder), folder)

    @classmethod
    def of(cls, model: Transformer, folder: Path) -> "ChatModel":
        """The same with a model that is loaded already, from `folder`."""
        tokenizer = load_tokenizer(folder)
        # Both of ours whatever the settings say: a base model ends a document, a chat model its message.
        stop_ids = end_ids(folder) | {tokenizer.im_end_id, tokenizer.endoftext_id}
        return cls(decoder_for(model), tokenizer, stop_ids)

    def stream(self, messages: Sequence[Message], sampling: Sampling = GREEDY, max_tokens: int = 200) -> Iterator[str]:
        """The answer to the last message, piece by piece. Turns that do not fit the context are left out, oldest first.

        Raises:
            ValueError: the last message alone is longer than the model can read.
        """
        yield from stream_text(self.tokenizer, self.generation(messages, sampling, max_tokens))

    def answer(self, messages: Sequence[Message], max_tokens: int = 200) -> str:
        """The greedy answer as a whole."""
        return "".join(self.stream(messages, max_tokens=max_tokens))

    def generation(self, messages: Sequence[Message], sampling: Sampling, max_tokens: int) -> Generation:
        """The new tokens of an answer; iterate over it, then see why it ended."""
        prompt = self._prompt_that_fits(messages)
        return Generation(self.decoder, prompt, self.stop_ids, max_tokens, sampling)

    def _prompt_that_fits(self, messages: Sequence[Message]) -> list[int]:
        kept = list(messages)
        limit = self.decoder.context_length - 1  # room for one token at least
        while True:
            prompt = render_prompt(self.tokenizer, kept)
            if len(prompt) <= limit:
                return prompt
            # The system message stays, and so does the last: it is the question.
            oldest = next((i for i, m in enumerate(kept[:-1]) if m["role"] != "system"), None)
            if oldest is None:
                raise ValueError(
                    f"The message has {len(prompt)} tokens with its frame, but this model reads at most {limit}. "
                    "Shorten it, or train with a longer context_length."
                )
            del kept[oldest]
