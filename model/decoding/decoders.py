"""Which decoder a model gets: the compiled engine on a CPU, torch with a cache anywhere else."""

from model.decoding.generate import Decoder, TorchDecoder
from model.kernels.jit import COMPILED
from model.network.transformer import Transformer


def decoder_for(model: Transformer) -> Decoder:
    """The fastest decoder for the model where it lies."""
    if COMPILED and model.model.norm.weight.device.type == "cpu":
        from model.decoding.engine import Engine  # not at the top: it needs numba

        return Engine(model)
    return TorchDecoder(model)
