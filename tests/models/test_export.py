"""Exports read back by others: transformers on the folder, gguf's reader and transformers on the GGUF file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from flows.cli.main import main
from model.network.shape import RopeScaling
from model.quantization.packed import packed_layers
from model.vocabulary.chat_format import serving_template
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.models.export import check_transformers, export_gguf, export_hf
from tasks.models.folder import load_quantized
from tasks.models.quantize import QuantizeConfig, quantize
from tests.helpers.inference import make_model, make_scored_tokens, random_model
from tests.helpers.training import make_tokenizer

MESSAGES = [{"role": "user", "content": "What is `int`?\n\nThanks  🙂"}]
FAMILIES = {"qwen3": {"qk_norm": True}, "llama": {"qk_norm": False, "tied_embeddings": True}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


def saved(folder: Path, tokenizer: Artifact, **changes: Any) -> Artifact:
    return make_model(folder, random_model(**changes), tokenizer)


def fields_of(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_agrees(tmp_path: Path, tokenizer: Artifact, family: str) -> None:
    found = check_transformers(saved(tmp_path / "model", tokenizer, **FAMILIES[family]).path, MESSAGES, 40)
    assert found.max_logit_difference < 1e-4
    assert found.greedy_equal
    assert found.tokens_compared > 20


def test_another_chat_template_is_noticed(tmp_path: Path, tokenizer: Artifact) -> None:
    folder = saved(tmp_path / "model", tokenizer).path
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="transformers renders the conversation to"):
        check_transformers(folder, MESSAGES)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_gguf_file(tmp_path: Path, tokenizer: Artifact, family: str) -> None:
    folder = saved(tmp_path / "model", tokenizer, **FAMILIES[family]).path
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    ids = torch.arange(40)[None] * 7
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # transformers 5.23 takes Qwen3's head size from its own default, not from the file: so the shape is given.
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", config=AutoConfig.from_pretrained(folder), dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        torch.testing.assert_close(read(ids).logits, original(ids).logits, atol=1e-5, rtol=0)


def test_metadata_says_what_the_model_is(tmp_path: Path, tokenizer: Artifact) -> None:
    folder = saved(tmp_path / "model", tokenizer).path
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    fields = fields_of(tmp_path / "model.gguf")
    expected = {
        "general.architecture": "qwen3",
        "qwen3.block_count": 2,
        "qwen3.context_length": 128,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 128,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.vocab_size": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["qwen3.rope.freq_base"] == pytest.approx(10_000)
    assert fields["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_the_tokenizer_comes_back_whole(tmp_path: Path, tokenizer: Artifact) -> None:
    folder = saved(tmp_path / "model", tokenizer).path
    export_gguf(folder, tmp_path / "model.gguf", "f16")
    fields = fields_of(tmp_path / "model.gguf")
    specification = json.loads((folder / "tokenizer.json").read_text())
    special = json.loads((folder / "contract.json").read_text())["special_ids"]
    vocabulary = specification["model"]["vocab"] | special
    assert fields["tokenizer.ggml.tokens"] == sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = fields["tokenizer.ggml.token_type"]
    assert {i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL} == set(special.values())
    assert [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]] == [
        tuple(m) for m in specification["model"]["merges"]
    ]
    assert fields["tokenizer.ggml.eos_token_id"] == special["<|im_end|>"]
    assert fields["tokenizer.chat_template"] == serving_template((folder / "chat_template.jinja").read_text())
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = "def f(x):\n    return x**2  # naïve, 3.14 🙂"
    # transformers ignores `pre`, so only the vocabulary and the merges are compared here.
    read.backend_tokenizer.pre_tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer
    assert read.encode(text) == AutoTokenizer.from_pretrained(folder).encode(text)


@pytest.mark.parametrize(("weights", "tolerance"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)])
def test_converted_weights_are_near(tmp_path: Path, tokenizer: Artifact, weights: str, tolerance: float) -> None:
    model = random_model()
    export_gguf(make_model(tmp_path / "model", model, tokenizer).path, tmp_path / "model.gguf", weights)
    tensors = tensors_of(tmp_path / "model.gguf")
    assert tensors["blk.0.ffn_up.weight"].tensor_type == GGMLQuantizationType[weights.upper()]
    assert tensors["blk.0.attn_norm.weight"].tensor_type == GGMLQuantizationType.F32
    for name, expected in (
        ("blk.1.ffn_down.weight", model.model.layers[1].mlp.down_proj.weight),
        ("token_embd.weight", model.model.embed_tokens.weight),
    ):
        found = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        np.testing.assert_allclose(
            found, expected.detach().numpy(), atol=tolerance * float(expected.detach().abs().max())
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_nvfp4_codes_go_over_as_they_are(
    tmp_path: Path, tokenizer: Artifact, execution: Execution, family: str
) -> None:
    tokens = make_scored_tokens(tmp_path / "tokens", tokenizer)
    model = saved(tmp_path / "model", tokenizer, **FAMILIES[family])
    config = QuantizeConfig(format="nvfp4", method="nearest")
    small = build(quantize, config, {"model": model, "calibration": tokens}, execution)
    export_gguf(small.path, tmp_path / "model.gguf", "nvfp4")
    tensors = tensors_of(tmp_path / "model.gguf")
    layers = packed_layers(load_quantized(small.path))
    for ours, theirs, heads in (("mlp.down_proj", "ffn_down", 0), ("self_attn.k_proj", "attn_k", 2)):
        tensor, scale = tensors[f"blk.1.{theirs}.weight"], tensors[f"blk.1.{theirs}.scale"].data[0]
        assert tensor.tensor_type == GGMLQuantizationType.NVFP4
        found = gguf.dequantize(tensor.data, tensor.tensor_type) * scale
        if heads and family == "llama":  # llama.cpp's order of rows back to transformers'
            found = found.reshape(heads, len(found) // heads // 2, 2, -1).swapaxes(1, 2).reshape(found.shape)
        np.testing.assert_array_equal(found, layers[f"model.layers.1.{ours}"].quantized.dequantize().numpy())
    assert tensors["token_embd.weight"].tensor_type == GGMLQuantizationType.Q8_0


def test_scaled_positions_become_frequency_factors(tmp_path: Path, tokenizer: Artifact) -> None:
    scaling = RopeScaling("llama3", 8.0, 64)
    folder = saved(tmp_path / "model", tokenizer, rope_scaling=scaling, qk_norm=False).path
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    factors = tensors_of(tmp_path / "model.gguf")["rope_freqs.weight"].data
    assert factors[0] == 1.0  # short wavelengths stay, long ones are stretched
    assert factors[-1] == pytest.approx(8.0)
    yarn = saved(tmp_path / "yarn", tokenizer, rope_scaling=RopeScaling("yarn", 8.0, 64)).path
    with pytest.raises(ValueError, match="RoPE scaling 'yarn' is not supported"):
        export_gguf(yarn, tmp_path / "yarn.gguf", "f32")


@pytest.mark.parametrize("qk_norm", [True, False])
def test_linear_scaling_is_a_field_and_no_tensor(tmp_path: Path, tokenizer: Artifact, qk_norm: bool) -> None:
    folder = saved(tmp_path / "model", tokenizer, rope_scaling=RopeScaling("linear", 4.0), qk_norm=qk_norm).path
    export_gguf(folder, tmp_path / "model.gguf", "f32")
    fields, arch = fields_of(tmp_path / "model.gguf"), "qwen3" if qk_norm else "llama"
    assert fields[f"{arch}.rope.scaling.type"] == "linear"
    assert fields[f"{arch}.rope.scaling.factor"] == 4.0
    assert "rope_freqs.weight" not in tensors_of(tmp_path / "model.gguf")


def test_llama_cpp_has_no_frequency_factors_with_qk_norm(tmp_path: Path, tokenizer: Artifact) -> None:
    """Its `qwen3` creates no such tensor, and refuses a file that has one more than it expects."""
    folder = saved(tmp_path / "model", tokenizer, rope_scaling=RopeScaling("llama3", 8.0, 64)).path
    with pytest.raises(ValueError, match="RoPE scaling 'llama3' of a model with QK-norm is not supported"):
        export_gguf(folder, tmp_path / "model.gguf", "f32")


def test_what_cannot_be_exported_is_refused(tmp_path: Path, tokenizer: Artifact) -> None:
    folder = saved(tmp_path / "model", tokenizer).path
    with pytest.raises(ValueError, match="has no NVFP4 codes"):
        export_gguf(folder, tmp_path / "model.gguf", "nvfp4")
    odd = saved(tmp_path / "odd", tokenizer, intermediate_size=72).path
    with pytest.raises(ValueError, match="down_proj has 72 inputs, but q8_0 needs a multiple of 32"):
        export_gguf(odd, tmp_path / "odd.gguf", "q8_0")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tokenizer: Artifact) -> Artifact:
    """A model in NVFP4."""
    folder = tmp_path_factory.mktemp("small")
    tokens = make_scored_tokens(folder / "tokens", tokenizer)
    inputs = {"model": saved(folder / "model", tokenizer), "calibration": tokens}
    return build(quantize, QuantizeConfig(format="nvfp4", method="nearest"), inputs, Execution(home=folder / "home"))


def test_a_quantized_folder_is_not_copied_for_transformers(tmp_path: Path, small: Artifact) -> None:
    with pytest.raises(
        ValueError, match=r"quantized model \(weights in int8, nvfp4\), which transformers does not read"
    ) as e:
        export_hf(small.path, tmp_path / "model", MESSAGES)
    assert "--model" in str(e.value) and "--format nvfp4" in str(e.value) and "q8_0" in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_so_in_a_paragraph(
    tmp_path: Path, small: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--home", str(tmp_path / "home"), "--model", str(small.path), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--format", "hf", *arguments])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "which transformers does not read" in " ".join((shown.out + shown.err).split())
    assert "Traceback" not in shown.out + shown.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--format", "q8_0", *arguments])
    assert stopped.value.code == 0
    assert tensors_of(tmp_path / "out")["blk.0.ffn_up.weight"].tensor_type == GGMLQuantizationType.Q8_0


def test_a_folder_goes_over_whole(tmp_path: Path, tokenizer: Artifact) -> None:
    folder = saved(tmp_path / "model", tokenizer).path
    found = export_hf(folder, tmp_path / "copy", MESSAGES)
    assert found.greedy_equal
    assert {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    assert {path.name for path in tmp_path.iterdir()} == {"model", "copy"}


def test_what_is_there_is_kept_and_what_fails_leaves_nothing(tmp_path: Path, tokenizer: Artifact) -> None:
    folder, out = saved(tmp_path / "model", tokenizer).path, tmp_path / "out"
    out.mkdir()
    (out / "there").write_text("mine")
    for export in (
        lambda target: export_gguf(folder, target, "f16"),
        lambda target: export_hf(folder, target, MESSAGES),
    ):
        with pytest.raises(ValueError, match="there exists already"):
            export(out / "there")
        with pytest.raises(ValueError, match=r"nowhere is not a folder that model could be written to"):
            export(out / "nowhere" / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="transformers renders"):
        export_hf(folder, out / "model", MESSAGES)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"holds no chat_template.jinja"):
        export_gguf(folder, out / "model.gguf", "f16")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"there": "mine"}


KILLED_WHILE_WRITING = """
import os, sys, gguf
from pathlib import Path
from tasks.models.export import export_gguf
gguf.GGUFWriter.write_tensors_to_file = lambda writer: os._exit(9)  # the disk has the beginning of the file
export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), "f16")
"""


def test_a_file_is_whole_or_absent(tmp_path: Path, tokenizer: Artifact) -> None:
    folder, target = saved(tmp_path / "model", tokenizer).path, tmp_path / "model.gguf"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder), str(target)]
    assert subprocess.run(command, cwd=root, timeout=300).returncode == 9
    assert not target.exists()
    export_gguf(folder, target, "f16")
    assert len(tensors_of(target)) == 2 * 11 + 3


def test_a_narrow_matrix_keeps_no_codes(tmp_path: Path, tokenizer: Artifact) -> None:
    model = saved(tmp_path / "model", tokenizer, intermediate_size=96)
    inputs = {"model": model, "calibration": make_scored_tokens(tmp_path / "tokens", tokenizer)}
    config, execution = QuantizeConfig(format="nvfp4", method="nearest"), Execution(home=tmp_path / "home")
    small = build(quantize, config, inputs, execution)
    with pytest.raises(ValueError, match="down_proj has 96 inputs, but nvfp4 needs a multiple of 64"):
        export_gguf(small.path, tmp_path / "model.gguf", "nvfp4")
    with pytest.raises(ValueError, match="GGUF weights are 'int8', one of f32, f16, bf16, q8_0, nvfp4 was expected"):
        export_gguf(small.path, tmp_path / "model.gguf", "int8")


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_same_answer(tmp_path: Path, tokenizer: Artifact, family: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = saved(tmp_path / "model", tokenizer, **FAMILIES[family])
    export_gguf(model.path, tmp_path / "model.gguf", "f32")
    theirs = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=128, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    ids = [3, 77, 205, 31, 9, 400]
    theirs.eval(ids)
    with torch.inference_mode():
        ours = random_model(**FAMILIES[family])(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(theirs.scores[: len(ids)], ours, atol=1e-3)
