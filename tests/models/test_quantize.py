"""The quantize stage: packed for real, loaded as packed, near the original, the same bytes whatever the threads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.decoding.engine import Engine
from model.quantization.formats import FORMATS
from model.quantization.packed import PackedEmbedding, PackedProjection, packed_layers, replace_weights
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build, obtain
from tasks.models.folder import PACKED_FILE, is_quantized, load_any_model, load_model, load_quantized
from tasks.models.quantize import QuantizeConfig, quantize
from tasks.tokens.contract import check_contract
from tests.helpers.inference import World, make_model, make_world, random_model

SMALL = {"calibration_tokens": 2048, "calibration_length": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def quantized(world: World, execution: Execution, **settings: object) -> Artifact:
    config = QuantizeConfig(**{**SMALL, **settings})  # type: ignore[arg-type]
    return build(quantize, config, {"model": world.model, "calibration": world.tokens}, execution)


def divergence(model_dir: Path, other_dir: Path, tokens_dir: Path) -> float:
    """Mean KL(model || other) in nats on 1,024 validation tokens."""
    ids = torch.from_numpy(np.fromfile(tokens_dir / "validation.bin", "<u2")[:1024].astype(np.int64)).view(8, 128)
    with torch.inference_mode():
        ours, theirs = (load_any_model(folder)(ids).log_softmax(-1) for folder in (model_dir, other_dir))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.parametrize(
    ("weight_format", "method", "limit"),
    [("int8", "nearest", 5e-4), ("int8", "gptq", 5e-4), ("nvfp4", "nearest", 0.02), ("nvfp4", "gptq", 0.01)],
)
def test_quantized_models_stay_near(
    world: World, execution: Execution, weight_format: str, method: str, limit: float
) -> None:
    found = quantized(world, execution, format=weight_format, method=method)
    assert 0 < divergence(world.model.path, found.path, world.tokens.path) < limit


def test_gptq_is_nearer_than_rounding(world: World, execution: Execution) -> None:
    distances = {}
    for method in ("nearest", "gptq"):
        found = quantized(world, execution, format="nvfp4", method=method, calibration_tokens=8192)
        distances[method] = divergence(world.model.path, found.path, world.tokens.path)
    assert distances["gptq"] < 0.85 * distances["nearest"], distances


def test_weights_are_packed_on_disk_and_in_memory(world: World, execution: Execution) -> None:
    parameters = {name: p.numel() for name, p in load_model(world.model.path).named_parameters()}
    ends = sum(n for name, n in parameters.items() if "embed" in name or "lm_head" in name)
    layers = sum(n for name, n in parameters.items() if "proj" in name)
    for weight_format, per_weight in (("int8", 1.0), ("nvfp4", 0.5 + 1 / 16)):
        found = quantized(world, execution, format=weight_format)
        expected = ends + layers * per_weight
        size = (found.path / PACKED_FILE).stat().st_size
        assert expected < size < expected * 1.1 + 20_000  # row scales, norms, names
        model = load_quantized(found.path)
        assert len(packed_layers(model)) == 2 * 7 + 2
        assert isinstance(model.model.embed_tokens, PackedEmbedding)
        assert isinstance(model.lm_head, PackedProjection)
        held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        assert held < size


def test_the_folder_holds_what_inference_needs(world: World, execution: Execution) -> None:
    found = quantized(world, execution, format="nvfp4")
    description = json.loads((found.path / "quantization.json").read_bytes())
    assert description["format"] == "nvfp4"
    assert description["formats"]["model.layers.0.mlp.up_proj"] == "nvfp4"
    assert description["formats"]["lm_head"] == description["formats"]["model.embed_tokens"] == "int8"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "contract.json"):
        assert (found.path / name).read_bytes() == (world.model.path / name).read_bytes()
    check_contract(world.model.path, found.path)
    assert is_quantized(found.path) and not is_quantized(world.model.path)


def test_loading_gives_the_weights_that_were_stored(world: World, execution: Execution) -> None:
    found = quantized(world, execution, format="nvfp4", method="nearest")
    layer = packed_layers(load_quantized(found.path))["model.layers.1.mlp.down_proj"]
    stored = load_file(found.path / PACKED_FILE)
    codes = stored["model.layers.1.mlp.down_proj.codes"].numpy()
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    by_hand = np.stack([levels[codes & 15], levels[codes >> 4]], -1).reshape(len(codes), -1)
    scales = stored["model.layers.1.mlp.down_proj.scales"].view(torch.float8_e4m3fn).double().numpy()
    by_hand *= np.repeat(scales, 16, axis=1) * float(stored["model.layers.1.mlp.down_proj.global_scale"])
    np.testing.assert_array_equal(layer.quantized.dequantize().numpy(), by_hand)


def test_same_bytes_again_and_with_more_threads(world: World, tmp_path: Path) -> None:
    homes = [Execution(home=tmp_path / str(threads), threads=threads) for threads in (1, 2)]
    for weight_format in ("int8", "nvfp4"):
        digests = {quantized(world, execution, format=weight_format).digest for execution in homes}
        assert len(digests) == 1


def test_metrics_say_how_much_was_saved(world: World, execution: Execution) -> None:
    config = QuantizeConfig(format="nvfp4", **SMALL)
    outcome = obtain(quantize, config, {"model": world.model, "calibration": world.tokens}, execution)
    assert outcome.manifest.metrics["calibration_tokens"] == 2048
    assert outcome.manifest.metrics["size_bytes"] == (outcome.artifact.path / PACKED_FILE).stat().st_size
    assert 3 < outcome.manifest.metrics["size_ratio"] < 8


def test_layers_that_do_not_divide_stay_int8(world: World, execution: Execution, tmp_path: Path) -> None:
    odd = make_model(tmp_path / "odd", random_model(intermediate_size=72), world.tokenizer)
    found = build(
        quantize, QuantizeConfig(format="nvfp4", **SMALL), {"model": odd, "calibration": world.tokens}, execution
    )
    formats = json.loads((found.path / "quantization.json").read_bytes())["formats"]
    assert formats["model.layers.0.mlp.down_proj"] == "int8"
    assert formats["model.layers.0.mlp.up_proj"] == "nvfp4"
    assert divergence(odd.path, found.path, world.tokens.path) < 0.2


def test_tied_embeddings_are_stored_once(world: World, execution: Execution, tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", random_model(tied_embeddings=True), world.tokenizer)
    found = build(
        quantize, QuantizeConfig(format="int8", **SMALL), {"model": tied, "calibration": world.tokens}, execution
    )
    assert not [name for name in load_file(found.path / PACKED_FILE) if "lm_head" in name]
    assert divergence(tied.path, found.path, world.tokens.path) < 1e-2


def test_tokens_of_another_tokenizer_are_refused(world: World, execution: Execution, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in world.tokens.path.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    contract = json.loads((other / "contract.json").read_bytes())
    (other / "contract.json").write_text(json.dumps({**contract, "tokenizer_digest": "0" * 64}))
    with pytest.raises(ValueError, match="Contract mismatch in tokenizer_digest"):
        build(quantize, QuantizeConfig(), {"model": world.model, "calibration": Artifact("0" * 64, other)}, execution)


def copied(source: Path, target: Path) -> Path:
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def with_format(folder: Path, matrix: str, weight_format: str) -> None:
    """Have `quantization.json` say that a matrix is in another format."""
    description = json.loads((folder / "quantization.json").read_bytes())
    description["formats"][matrix] = weight_format
    (folder / "quantization.json").write_text(json.dumps(description))


def with_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change one stored tensor."""
    tensors = load_file(folder / PACKED_FILE)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, folder / PACKED_FILE)


UP = "model.layers.1.mlp.up_proj"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a matrix too many": (
        lambda folder: with_format(folder, "model.layers.7.mlp.up_proj", "int8"),
        r"has no tensor 'model\.layers\.7\.mlp\.up_proj\.codes'",
    ),
    "a format to come": (
        lambda folder: with_format(folder, UP, "int3"),
        r"quantization.json: .*up_proj is in the format 'int3'; this version reads int8, nvfp4",
    ),
    "another format than the codes": (lambda folder: with_format(folder, UP, "nvfp4"), r"has no tensor .*global_scale"),
    "codes of another matrix": (
        lambda folder: with_tensor(folder, f"{UP}.codes", lambda codes: codes[:, :32]),
        r"codes is \(128, 32\) of torch.int8, but int8 stores a matrix \(128, 64\) as \(128, 64\) of torch.int8",
    ),
    "scales of another kind": (
        lambda folder: with_tensor(folder, f"{UP}.scales", torch.Tensor.half),
        r"up_proj.scales is \(128,\) of torch.float16, but int8 stores .* of torch.float32",
    ),
    "no description of the formats": (
        lambda folder: (folder / "quantization.json").write_text("{}"),
        "quantization.json: formats is None",
    ),
    "a description cut short": (
        lambda folder: (folder / "quantization.json").write_text('{"formats": {'),
        "quantization.json is not JSON",
    ),
    "a file cut short": (
        lambda folder: (folder / PACKED_FILE).write_bytes((folder / PACKED_FILE).read_bytes()[:-9]),
        rf"{PACKED_FILE} \(\d+ bytes\) is no whole safetensors file",
    ),
    "no weights": (lambda folder: (folder / PACKED_FILE).unlink(), f"holds no {PACKED_FILE}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(world: World, execution: Execution, tmp_path: Path, damage: str) -> None:
    folder = copied(quantized(world, execution, format="int8", method="nearest").path, tmp_path)
    inflict, message = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(folder)
    assert str(folder) in str(caught.value)


def test_a_norm_that_is_said_to_be_packed_is_refused(world: World, execution: Execution, tmp_path: Path) -> None:
    folder = copied(quantized(world, execution, format="int8", method="nearest").path, tmp_path)
    tensors = load_file(folder / PACKED_FILE)
    norm = {"model.norm.codes": torch.ones(64, 1, dtype=torch.int8), "model.norm.scales": torch.ones(64)}
    save_file(tensors | norm, folder / PACKED_FILE)
    with_format(folder, "model.norm", "int8")
    with pytest.raises(ValueError, match="the model has no matrix 'model.norm' to be packed"):
        load_quantized(folder)


def test_a_quantized_model_is_no_full_one(world: World, execution: Execution) -> None:
    found = quantized(world, execution, format="int8", method="nearest")
    with pytest.raises(ValueError, match="holds a quantized model .* but weights in full are needed here"):
        load_model(found.path)


def test_layers_of_different_formats_are_refused_by_the_engine(world: World, execution: Execution) -> None:
    model = load_quantized(quantized(world, execution, format="nvfp4", method="nearest").path)
    layer = packed_layers(model)[UP]
    replace_weights(model, {UP: FORMATS["int8"].nearest(layer.weight)})
    with pytest.raises(
        ValueError, match=r"found layers\.1\.mlp\.gate_proj as NVFP4Matrix, layers\.1\.mlp\.up_proj as Int8"
    ):
        Engine(model)
