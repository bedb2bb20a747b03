"""Take a model elsewhere: a GGUF file for llama.cpp and its kin, and the proof that transformers agrees with us.

A model folder already is a Hugging Face folder, so there is nothing to convert: `check_transformers` loads it there and
compares. A GGUF file holds weights, tokenizer and chat template in one; codes go over as they are where GGUF has the
format. What is written is whole or not there: it is written aside and renamed.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from model.network.rope import rope_frequencies
from model.network.shape import ModelConfig, RopeScaling
from model.network.transformer import Transformer
from model.quantization.formats import DEFAULT, FORMATS, GGUF_FILE_TYPES, QuantizedWeight
from model.quantization.packed import PackedWeight
from model.vocabulary.chat_format import serving_template
from tasks.models.folder import (
    chat_template,
    formats_of,
    is_quantized,
    load_any_model,
    load_tokenizer,
    tokenizer_specification,
)
from tasks.tokens.contract import read_contract

Array = NDArray[Any]

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
# INT8 in every quantized model: a head in NVFP4 costs as much perplexity as all the rest, one in INT8 nothing.
_ENDS = ("model.embed_tokens", "lm_head")


def gguf_name(module: str) -> str:
    """llama.cpp's name of a module's weight: `model.layers.3.mlp.up_proj` -> `blk.3.ffn_up`."""
    if module in _OUTER_NAMES:
        return _OUTER_NAMES[module]
    _, _, index, rest = module.split(".", 3)
    return f"blk.{index}.{_LAYER_NAMES[rest]}"


def export_gguf(folder: Path, target: Path, weights: str) -> None:
    """Write the model in `folder`, full or quantized, as one GGUF file.

    `weights` is one of GGUF_FILE_TYPES. The name of a format takes the codes of an artifact in that format as they are
    (what is in another, as embedding and head are, becomes that one's type); all others convert.

    Raises:
        ValueError: a format asked of another model, inputs that do not divide into its blocks, or a damaged folder.
    """
    if weights not in GGUF_FILE_TYPES:
        raise ValueError(f"GGUF weights are {weights!r}, one of {', '.join(GGUF_FILE_TYPES)} was expected.")
    with _written_aside(target) as aside:
        _write_gguf(aside, load_any_model(folder), folder, weights)


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """A name beside `target` for a file or folder, which takes the place of `target` once it is whole.

    Raises:
        ValueError: `target` is there already, or the folder that it should be in is not.
    """
    if target.exists():
        raise ValueError(f"{target} exists already. Choose another --output, or remove it first.")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a folder that {target.name} could be written to. Make it first.")
    aside = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        yield aside
        aside.rename(target)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def _write_gguf(path: Path, model: Transformer, folder: Path, weights: str) -> None:
    config = model.config
    # QK-norm is what tells the two apart: `qwen3` does not load without its tensors, `llama` has no place for them.
    arch = "qwen3" if config.qk_norm else "llama"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(GGUF_FILE_TYPES[weights])
    writer.add_quantization_version(2)  # GGML_QNT_VERSION: that of the layouts of all types since 2023
    _add_shape(writer, model)
    _add_tokenizer(writer, folder, config.vocab_size)
    for name, module in model.named_modules():
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
        # llama.cpp divides each frequency by its factor.
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))


def _add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Vocabulary, merges, special tokens and chat template; every id has an entry."""
    specification = tokenizer_specification(folder)
    # llama.cpp wants exactly vocab_size entries: ids without a token keep this name and the type UNUSED.
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for token, index in specification["model"]["vocab"].items():
        tokens[index], kinds[index] = token, gguf.TokenType.NORMAL
    for added in specification["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    merges = specification["model"]["merges"]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of any byte-level BPE
    # QWEN2_PATTERN of model/vocabulary/tokenizer.py: equal ids in llama.cpp on 1,000 odd strings (emoji, CRLF, NUL).
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # tokenizer.json has a merge as "a b" or as a pair, by the version that wrote it.
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(False)  # a chat begins with <|im_start|>, as in training
    special = read_contract(folder).special_ids
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_eos_token_id(special["<|im_end|>"])  # what ends an answer; <|endoftext|> is between documents
    writer.add_eot_token_id(special["<|im_end|>"])
    writer.add_pad_token_id(special["<|pad|>"])
    writer.add_chat_template(serving_template(chat_template(folder)))


def _add_weight(writer: Any, name: str, module: torch.nn.Module, weights: str, heads: int) -> None:
    """One tensor, its rows reordered by heads where `heads` is given."""
    target, kept = gguf_name(name), FORMATS.get(weights)
    packed = module.quantized if isinstance(module, PackedWeight) else None
    if kept and packed and packed.format is kept:
        _add_codes(writer, name, packed, heads)
        return
    full = module.weight
    assert isinstance(full, torch.Tensor)
    matrix = _permute_heads(full.detach().float().numpy(), heads)
    if matrix.ndim == 1 or weights == "f32":  # norms stay in fp32, as llama.cpp keeps them
        writer.add_tensor(f"{target}.weight", matrix)
    elif kept and packed is None and name not in _ENDS:
        raise ValueError(
            f"{name} has no {kept.name.upper()} codes: export an artifact of `quantize` with format {kept.name} as "
            f"{kept.name}."
        )
    else:
        kind = _type((packed.format if packed else DEFAULT).gguf_type if kept else weights.upper())
        _check_inputs(name, matrix.shape[1], kind)
        writer.add_tensor(f"{target}.weight", gguf.quantize(matrix, kind), raw_dtype=kind)


def _add_codes(writer: Any, name: str, weight: QuantizedWeight, heads: int) -> None:
    """A matrix whose format GGUF has too: not a code changes."""
    rows = len(weight.tensors["codes"])
    # Rows change places with their scales, so no code does.
    order = _permute_heads(np.arange(rows)[:, None], heads)[:, 0]
    kind = _type(weight.format.gguf_type)
    _check_inputs(name, weight.columns, kind)
    for part, array in weight.format.gguf_tensors(weight.rows(torch.from_numpy(order)).tensors).items():
        # Packed bytes need their type said; the F32 scale of a whole NVFP4 tensor has its own.
        raw = {"raw_dtype": kind} if array.dtype == np.uint8 else {}
        writer.add_tensor(f"{gguf_name(name)}.{part}", array, **raw)


def _type(name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


def _check_inputs(name: str, inputs: int, kind: Any) -> None:
    """Refuse a matrix that does not divide into the blocks of its type in GGUF."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if inputs % block:
        raise ValueError(
            f"{name} has {inputs} inputs, but {kind.name.lower()} needs a multiple of {block}. Export as f16."
        )


def _permute_heads(matrix: Array, heads: int) -> Array:
    """The rows of each head from (first half, second half) to pairs; unchanged with 0 heads."""
    if not heads:
        return matrix
    # (heads * 2 * D/2, I) -> (heads * D/2 * 2, I); its inverse is what transformers does when it reads GGUF.
    return matrix.reshape(heads, 2, len(matrix) // heads // 2, -1).swapaxes(1, 2).reshape(matrix.shape)


@dataclass(frozen=True)
class TransformersCheck:
    """How far transformers and we differ on the same tokens; `prompt_ids` are equal or the check has raised."""

    max_logit_difference: float
    greedy_equal: bool
    tokens_compared: int


def export_hf(folder: Path, target: Path, messages: list[dict[str, str]]) -> TransformersCheck:
    """Copy a model folder once transformers agrees with it on `messages`.

    Raises:
        ValueError: the model is quantized, which transformers does not read, or the two render `messages` differently.
    """
    if is_quantized(folder):
        found = ", ".join(sorted({weight_format.name for weight_format in formats_of(folder).values()}))
        kept = [name for name in GGUF_FILE_TYPES if name in FORMATS]
        raise ValueError(
            f"{folder} holds a quantized model (weights in {found}), which transformers does not read. Name a form in "
            f"full precision with --model, or export this one as GGUF: --format {' or '.join(kept)} where its codes "
            f"are of that format, else one of {', '.join(name for name in GGUF_FILE_TYPES if name not in kept)}."
        )
    with _written_aside(target) as aside:
        check = check_transformers(folder, messages)
        shutil.copytree(folder, aside)
    return check


def check_transformers(folder: Path, messages: list[dict[str, str]], new_tokens: int = 32) -> TransformersCheck:
    """Load a model folder with transformers, render `messages` by its template, and compare logits and answers.

    Raises:
        ValueError: the two render the conversation to different tokens.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.decoding.generate import TorchDecoder, generate
    from model.vocabulary.chat_format import render_prompt

    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.eval()
    ours = load_any_model(folder).eval()
    # transformers 5 returns a BatchEncoding without `return_dict=False`.
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    prompt = render_prompt(load_tokenizer(folder), messages)
    if list(rendered) != prompt:
        raise ValueError(f"{folder}: transformers renders the conversation to {list(rendered)}, we to {prompt}.")
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        difference = float((theirs(ids).logits - ours(ids)).abs().max())
        # transformers includes the token that ends an answer, we do not; the setting is an id or a list of them.
        stop = theirs.generation_config.eos_token_id
        answer = theirs.generate(ids, do_sample=False, max_new_tokens=new_tokens)[0, len(prompt) :].tolist()
    stop_ids = set(stop if isinstance(stop, list) else [stop])
    answer = [token for token in answer if token not in stop_ids]
    mine = generate(TorchDecoder(ours), prompt, stop_ids, new_tokens)
    return TransformersCheck(difference, answer == mine, len(prompt) + len(mine))
