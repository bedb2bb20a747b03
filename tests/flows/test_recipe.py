"""Recipes: presets load, the dial scales, and a mistake names the field, its bounds and the nearest valid name."""

from dataclasses import replace
from pathlib import Path

import pytest

from flows.fields import field_names
from flows.recipe import Recipe, load_plan, preset_names, scale_by_depth
from tasks.train.sft import SftConfig


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads(preset: str) -> None:
    plan = load_plan(preset)
    assert plan.recipe.name == preset


def test_the_presets_are_those_promised() -> None:
    assert {"demo", "laptop", "gpu-1", "node-8", "fineweb-edu"} <= set(preset_names())


def test_depth_sets_the_shape_and_each_part_can_be_overridden() -> None:
    shape = ["pretrain.model.hidden_size=320", "pretrain.model.num_heads=5", "pretrain.model.num_kv_heads=5"]
    recipe = load_plan("demo", ["depth=8", *shape]).recipe
    assert recipe.pretrain.model.num_layers == 8
    assert recipe.pretrain.model.hidden_size == 320
    assert recipe.pretrain.model.intermediate_size == scale_by_depth(8)["pretrain"]["model"]["intermediate_size"]


def test_momentum_follows_the_tokens_of_a_step() -> None:
    """0.9 was better at 4,096 tokens a step (docs/LOG.md); every recipe for a GPU takes 65,536 or more."""
    values = {name: load_plan(name).recipe.pretrain.optimizer.momentum for name in preset_names()}
    assert values == {"demo": 0.9, "laptop": 0.9, "gpu-1": 0.95, "node-8": 0.95, "fineweb-edu": 0.95}
    assert load_plan("demo", ["depth=16"]).recipe.pretrain.optimizer.momentum == 0.95
    assert load_plan("demo", ["depth=16", "pretrain.optimizer.momentum=0.8"]).recipe.pretrain.optimizer.momentum == 0.8


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7, 12, 28])
def test_every_depth_is_a_valid_recipe(depth: int) -> None:
    pretrain = load_plan("demo", [f"depth={depth}"]).recipe.pretrain
    assert pretrain.model.num_heads % pretrain.model.num_kv_heads == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["dpo.bta=0.2"], r"dpo\.bta is not a field.*Did you mean dpo\.beta\?"),
        (["beta=0.2"], r"beta is not a field.*Did you mean dpo\.beta\?"),
        (["dpo.beta=-1"], r"dpo\.beta = -1.*greater than"),
        (["dpo.beta=-1"], r"It must be more than 0 and at most 10\."),
        (["pretrain.model.num_layers=0"], r"decoder layers\. It must be at least 1 and at most 256\."),
        (["pretrain.optimizer.betas=[2, 0.9]"], r"betas\.0 = 2: .*first and second moment.*It must be at least 0\."),
        (["start=3"], r"start = 3: input should be 'scratch' or 'champion'"),
        (["name=3"], r"name = 3: .* of the pattern \^\[A-Za-z0-9\]"),
        (["dpo.beta=much"], r"dpo\.beta = 'much'.*number"),
        (
            ["sft.batches.sequence_length=1024"],
            r"recipe: sft\.batches\.sequence_length is 1024, but the model reads at most 256",
        ),
        (["dpo.batches.sequence_length=257"], r"dpo\.batches\.sequence_length is 257, but the model reads at most 256"),
        (["dpo.loss_type=exo_pair"], r"dpo: label_smoothing is 0, but the loss 'exo_pair' needs some"),
        (["dpo.beta"], r"--set dpo\.beta: expected a field and a value"),
        (["pretrain.num_layers=4"], r"pretrain\.num_layers is not .* Did you mean pretrain\.model\.num_layers\?"),
        (["sft.steps=4"], r"sft\.steps is not a field.*Did you mean sft\.batches\.steps\?"),
        (["momentum=0.5"], r"momentum is not a field.*Did you mean pretrain\.optimizer\.momentum\?"),
        (["pretrain.model.num_layer=4"], r"num_layer is not .* Did you mean pretrain\.model\.num_layers\?"),
        (["pretrain.rope_scaling_factor=4"], r"Did you mean pretrain\.model\.rope_scaling\.factor\?"),
        (["pretrain.optimizer=adamw"], r"optimizer = 'adamw': it is a section; .* such as pretrain\.optimizer\.kind\."),
        (["pretrain=4"], r"pretrain = 4: it is a section; set its fields, such as pretrain\."),
        (["pretrain.model.hidden_size=4"], r"hidden_size = 4: .* equal to 8\. Width of the residual stream\."),
        (["pretrain.model.num_kv_heads=3"], r"pretrain\.model: num_heads \(4\) must be a multiple of .* \(3\)\. "),
        (["depth=0.5"], r"depth = 0\.5: expected a whole number"),
        (["depth=1000"], r"depth = 1000: expected a whole number of layers from 1 to 128"),
        (["execution.workers=0"], r"workers = 0.*greater than or equal to 1"),
    ],
)
def test_mistakes_are_explained(settings: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        load_plan("demo", settings)


def test_a_section_given_in_part_takes_the_rest_from_its_stage() -> None:
    """As an orchestrator gives it, past `load_plan`: not the defaults of the type, which three stages share."""
    given = Recipe.model_validate({"dpo": {"optimizer": {"weight_decay": 0.1}}, "fp4": {"method": "nearest"}})
    usual = Recipe()
    assert given.dpo.optimizer == replace(usual.dpo.optimizer, weight_decay=0.1)
    assert given.dpo.optimizer.kind == "adamw" != usual.pretrain.optimizer.kind
    assert (given.fp4.format, given.fp4.method) == ("nvfp4", "nearest")
    assert SftConfig(optimizer={"momentum": 0.5}).optimizer == replace(usual.sft.optimizer, momentum=0.5)  # type: ignore[arg-type]


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'demoo'. Did you mean demo\? Presets are: demo"):
        load_plan("demoo")


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("[1, 2")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_plan(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("just text")
    with pytest.raises(ValueError, match="holds str"):
        load_plan(str(tmp_path / "b.yaml"))


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/x']\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_plan(str(tmp_path / "a.yaml"))
    assert not (tmp_path / "x").exists()


def test_every_field_is_described_and_frozen() -> None:
    schema = Recipe.model_json_schema()
    for kind in [schema, *schema["$defs"].values()]:
        for name, field in kind.get("properties", {}).items():
            assert field.get("description"), f"{name} has no description"
            assert "anyOf" not in field and "oneOf" not in field, f"{name} is a union: it makes a bad form"
    assert "dpo.beta" in field_names(Recipe)
