"""Take a model elsewhere: a GGUF file for llama.cpp and its kin, and the proof that transformers agrees with us.

A model folder already is a Hugging Face folder, so there is nothing to convert: `check_transformers` loads it there and
compares. A GGUF file holds weights, tokenizer and chat template in one; NVFP4 codes go over as they are.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.rope import rope_frequencies
from model.network.shape import ModelConfig, RopeScaling
from model.network.transformer import Transformer
from model.quantization.formats import BLOCK, NVFP4Weight
from model.quantization.packed import PackedWeight
from tasks.models.quantized_files import load_any_model

GGUFWeights = Literal["f32", "f16", "bf16", "q8_0", "nvfp4"]
Array = NDArray[Any]

_GGUF_BLOCK = 64  # inputs of an NVFP4 block in GGUF: four of ours
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32, "nvfp4": 39}  # llama.cpp's LLAMA_FTYPE


def gguf_name(module: str) -> str:
    """llama.cpp's name of a module's weight: `model.layers.3.mlp.up_proj` -> `blk.3.ffn_up`."""
    if module in _OUTER_NAMES:
        return _OUTER_NAMES[module]
    _, _, index, rest = module.split(".", 3)
    return f"blk.{index}.{_LAYER_NAMES[rest]}"


def export_gguf(folder: Path, target: Path, weights: GGUFWeights) -> None:
    """Write the model in `folder`, full or quantized, as one GGUF file.

    `nvfp4` takes the codes of an NVFP4 artifact as they are (embedding and head become q8_0); all others convert.

    Raises:
        ValueError: `nvfp4` asked of another model, or inputs that do not divide into the format's blocks.
    """
    import gguf

    model = load_any_model(folder)
    config = model.config
    arch = "qwen3" if config.qk_norm else "llama"
    writer = gguf.GGUFWriter(target, arch)
    writer.add_file_type(_FILE_TYPES[weights])
    writer.add_quantization_version(2)
    _add_shape(writer, model)
    _add_tokenizer(writer, folder, config.vocab_size)
    modules: dict[str, torch.nn.Module] = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, PackedWeight) or "weight" in dict(module.named_parameters(recurse=False)):
            heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.rpartition(".")[2], 0)
            # llama.cpp's `llama` turns neighbouring pairs, transformers the two halves; its `qwen3` turns halves too.
            _add_weight(writer, name, module, weights, heads if arch == "llama" else 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, model: Transformer) -> None:
    config = model.config
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope_scaling(writer, config)


def _add_rope_scaling(writer: Any, config: ModelConfig) -> None:
    """Stretched positions, in the ways that llama.cpp reads: its `qwen3` knows no factor for each frequency.

    `dynamic` stretches none within the context that the model was trained on, which is all the file promises.
    """
    import gguf

    scaling = config.rope_scaling
    if scaling.kind == "yarn" or (scaling.kind == "llama3" and config.qk_norm):
        with_what = " of a model with QK-norm" if scaling.kind == "llama3" else ""
        raise ValueError(
            f"GGUF export of RoPE scaling '{scaling.kind}'{with_what} is not supported; export a model without it."
        )
    if scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "llama3":
        plain = rope_frequencies(config.head_dim, config.rope_theta, RopeScaling())
        scaled = rope_frequencies(config.head_dim, config.rope_theta, scaling)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))


def _add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Vocabulary, merges, special tokens and chat template; every id has an entry."""
    import gguf

    specification = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for token, index in specification["model"]["vocab"].items():
        tokens[index], kinds[index] = token, gguf.TokenType.NORMAL
    for added in specification["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    merges = specification["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # the pre-tokenizer of model/vocabulary/tokenizer.py, by llama.cpp's name
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(False)
    special: dict[str, int] = json.loads((folder / "contract.json").read_bytes())["special_ids"]
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_eot_token_id(special["<|im_end|>"])
    writer.add_pad_token_id(special["<|pad|>"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _add_weight(writer: Any, name: str, module: torch.nn.Module, weights: GGUFWeights, heads: int) -> None:
    """One tensor, its rows reordered by heads where `heads` is given."""
    import gguf

    packed = module.quantized if isinstance(module, PackedWeight) else None
    is_end = name in ("model.embed_tokens", "lm_head")
    target = gguf_name(name)
    kinds = gguf.GGMLQuantizationType
    if weights == "nvfp4" and isinstance(packed, NVFP4Weight):
        writer.add_tensor(f"{target}.weight", nvfp4_blocks(packed, heads, name), raw_dtype=kinds.NVFP4)
        writer.add_tensor(f"{target}.scale", np.array([packed.global_scale], np.float32))
        return
    full = module.weight
    assert isinstance(full, torch.Tensor)
    matrix = _permute_heads(full.detach().float().numpy(), heads)
    if matrix.ndim == 1 or weights == "f32":
        writer.add_tensor(f"{target}.weight", matrix)
    elif weights == "nvfp4" and not is_end and packed is None:
        raise ValueError(f"{name} has no NVFP4 codes: export an artifact of `quantize` with format nvfp4 as nvfp4.")
    else:
        kind = kinds.Q8_0 if weights in ("q8_0", "nvfp4") else kinds[weights.upper()]
        if kind == kinds.Q8_0 and matrix.shape[1] % 32:
            raise ValueError(f"{name} has {matrix.shape[1]} inputs, but q8_0 needs a multiple of 32. Export as f16.")
        writer.add_tensor(f"{target}.weight", gguf.quantize(matrix, kind), raw_dtype=kind)


def _permute_heads(matrix: Array, heads: int) -> Array:
    """The rows of each head from (first half, second half) to pairs; unchanged with 0 heads."""
    if not heads:
        return matrix
    return matrix.reshape(heads, 2, len(matrix) // heads // 2, -1).swapaxes(1, 2).reshape(matrix.shape)


def nvfp4_blocks(weight: NVFP4Weight, heads: int, name: str) -> NDArray[np.uint8]:
    """GGUF's layout: per 64 inputs 4 scale bytes and 32 bytes of codes: (rows, columns / 64 * 36).

    Within 16 inputs, byte j holds input j in its low and input 8 + j in its high half.
    """
    rows, columns = weight.codes.shape
    if columns % _GGUF_BLOCK:
        raise ValueError(f"{name} has {columns} inputs, but NVFP4 in GGUF needs a multiple of {_GGUF_BLOCK}.")
    codes = _permute_heads(weight.codes.numpy(), heads).reshape(rows, columns // BLOCK, 2, BLOCK // 2)
    packed = (codes[:, :, 0] | (codes[:, :, 1] << 4)).reshape(rows, columns // _GGUF_BLOCK, _GGUF_BLOCK // 2)
    scales = _permute_heads(weight.scale_bytes.numpy(), heads).reshape(rows, columns // _GGUF_BLOCK, -1)
    return np.concatenate([scales, packed], axis=-1).reshape(rows, -1)


@dataclass(frozen=True)
class TransformersCheck:
    """How far transformers and we differ on the same tokens; `prompt_ids` are equal or the check has raised."""

    max_logit_difference: float
    greedy_equal: bool
    tokens_compared: int


def check_transformers(folder: Path, messages: list[dict[str, str]], new_tokens: int = 32) -> TransformersCheck:
    """Load a model folder with transformers, render `messages` by its template, and compare logits and answers.

    Raises:
        ValueError: the two render the conversation to different tokens.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.decoding.generate import TorchDecoder, generate
    from model.vocabulary.chat_format import render_prompt
    from model.vocabulary.tokenizer import Tokenizer

    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.eval()
    ours = load_any_model(folder).eval()
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    prompt = render_prompt(Tokenizer.load(folder), messages)
    if list(rendered) != prompt:
        raise ValueError(f"{folder}: transformers renders the conversation to {list(rendered)}, we to {prompt}.")
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        difference = float((theirs(ids).logits - ours(ids)).abs().max())
        stop = theirs.generation_config.eos_token_id
        answer = theirs.generate(ids, do_sample=False, max_new_tokens=new_tokens)[0, len(prompt) :].tolist()
    stop_ids = set(stop if isinstance(stop, list) else [stop])
    answer = [token for token in answer if token not in stop_ids]
    mine = generate(TorchDecoder(ours), prompt, stop_ids, new_tokens)
    return TransformersCheck(difference, answer == mine, len(prompt) + len(mine))
