"""Which decoder a model gets: torch with a cache, on any device; on a CPU the compiled engine where it can be had."""

from model.generate import Decoder, TorchDecoder
from model.transformer import Transformer


def decoder_for(model: Transformer) -> Decoder:
    """The fastest decoder for the model where it lies."""
    return TorchDecoder(model)
