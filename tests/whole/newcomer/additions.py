"""One of each kind that the table of CONTRIBUTING.md speaks of: new files, text beside what is there, and its proof."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RECIPE, GRAPH, FORMATS = "flows/recipe.py", "flows/graph.py", "model/quantization/formats.py"
LOSSES, READERS = "model/training/preference.py", "tasks/text/readers/__init__.py"
WORDS, FILTER = "model/corpus/features/words.py", "tasks/text/filter.py"
ARCHITECTURE = "tests/test_architecture.py"
CHECKS = "tests/whole/newcomer"


@dataclass(frozen=True)
class Edit:
    """Text put before or after an anchor, which the file has once."""

    path: str
    anchor: str
    after: str = ""
    before: str = ""

    def apply(self, root: Path) -> None:
        """Write the file anew."""
        path = root / self.path
        text = path.read_text(encoding="utf-8")
        assert text.count(self.anchor) == 1, f"{self.path} has {self.anchor!r} {text.count(self.anchor)} times"
        path.write_text(text.replace(self.anchor, f"{self.before}{self.anchor}{self.after}"), encoding="utf-8")


@dataclass(frozen=True)
class Addition:
    """What is added, under the table's name for it.

    new: file of this folder by the path where it goes. proof: files and tests for pytest; it fails where a test is not
    found, so one that runs over a registry, named with its argument, says that the registry holds the new one.
    compiled: whether a kernel must be; else all run as Python, which is sooner done than compiling each for a copy.
    """

    row: str
    edits: tuple[Edit, ...]
    proof: tuple[str, ...]
    new: Mapping[str, str]
    compiled: bool = False

    def apply(self, root: Path) -> None:
        """Add it to the tree below `root`."""
        for target, source in self.new.items():
            assert not (root / target).exists(), f"{target} is there already: give the example another name"
            (root / target).write_bytes((HERE / source).read_bytes())
        for edit in self.edits:
            edit.apply(root)


def in_its_place(module: str) -> tuple[str, ...]:
    """The tests of the order of the rooms that a new file has to pass."""
    tests = ("layers_point_one_way", "rooms_point_one_way", "every_file_opens_with_its_idea")
    return (
        *(f"{ARCHITECTURE}::test_{test}[{module}]" for test in tests),
        f"{ARCHITECTURE}::test_no_imports_form_a_circle",
        f"{ARCHITECTURE}::test_stages_never_import_each_other",
    )


def as_a_stage(name: str) -> tuple[str, ...]:
    """What a new stage has to pass: its place, its key, and the form that its section of the recipe is."""
    return (
        *in_its_place(f"tasks.text.{name}"),
        f"tests/mechanism/test_key.py::test_every_field_of_every_stage_moves_the_key[{name}]",
        "tests/mechanism/test_key.py::test_the_table_of_defaults_is_that_of_the_code",
        "tests/flows/test_recipe.py",
    )


STAGE = Addition(
    row="a stage",
    new={"tasks/text/normalize.py": "normalize.py"},
    edits=(
        Edit(
            RECIPE,
            "from tasks.text.ingest import IngestConfig\n",
            after="from tasks.text.normalize import NormalizeConfig\n",
        ),
        Edit(
            RECIPE,
            "    filter: FilterConfig = Field(",
            before="    normalize: NormalizeConfig = Field(NormalizeConfig(), "
            'description="Bring text to one Unicode form.")\n',
        ),
        Edit(GRAPH, "from tasks.text.ingest import ingest\n", after="from tasks.text.normalize import normalize\n"),
        Edit(
            GRAPH,
            "    documents = run(ingest, recipe.ingest, corpus=sources.corpus)\n",
            after="    documents = run(normalize, recipe.normalize, documents=documents)\n",
        ),
    ),
    proof=(*as_a_stage("normalize"), f"{CHECKS}/check_stage.py"),
)

JUDGE = Addition(
    row="a judge of documents",
    new={"tasks/text/takedown.py": "takedown.py"},
    edits=(
        Edit(
            RECIPE,
            "from tasks.text.ingest import IngestConfig\n",
            after="from tasks.text.takedown import TakedownConfig\n",
        ),
        Edit(
            RECIPE,
            "    conversations: ConversationsConfig = Field(",
            before='    takedown: TakedownConfig = Field(TakedownConfig(), description="Drop what has to go.")\n',
        ),
        Edit(GRAPH, "from tasks.text.source import Source\n", after="from tasks.text.takedown import takedown\n"),
        Edit(
            GRAPH,
            '    judged["dedup"] = run(dedup, recipe.dedup, documents=documents, **judged)\n',
            after='    judged["takedown"] = run(takedown, recipe.takedown, documents=documents, **judged)\n',
        ),
    ),
    proof=(*as_a_stage("takedown"), f"{CHECKS}/check_judge.py"),
)

INT4 = '''class Int4(Format):
    """weight[i, j] = (codes[i, j] - 8) * scales[i], two codes a byte."""

    name = "int4"
    summary = "4-bit integers with a scale per row"
    stored: ClassVar = {"codes": Stored("uint8", inputs=2), "scales": Stored("float16")}
    inputs_multiple = 2
    gguf_type = "Q4_0"

    def nearest(self, weight: "Tensor") -> QuantizedWeight:
        """The nearest multiple of the largest magnitude of the row / 7."""
        return QuantizedWeight(self, self._rounded(weight).tensors())

    def rounding(self, weight: "Tensor", importance: "Tensor") -> "_Int4Rounding":
        """Scales are those of the matrix as it comes."""
        self.check_columns(weight)
        return _Int4Rounding(weight)

    def _rounded(self, weight: "Tensor") -> "_Int4Rounding":
        found = self.rounding(weight, weight.new_ones(weight.shape[1]))
        for column in range(weight.shape[1]):
            found.round(weight.float(), column)
        return found

    def dequantize(self, tensors: "Mapping[str, Tensor]") -> "Tensor":
        """Codes times the scale of their row."""
        return self._codes(tensors).float() * tensors["scales"].float()[:, None]

    def step_matrix(self, tensors: "Mapping[str, Tensor]") -> "StepMatrix":
        """Codes in a byte each, for the kernel of INT8."""
        from model.kernels.matvec import Int8Matrix

        return Int8Matrix(self._codes(tensors).numpy(), tensors["scales"].float().numpy())

    def _codes(self, tensors: "Mapping[str, Tensor]") -> "Tensor":
        from model.quantization.nvfp4 import unpack_nibbles

        return unpack_nibbles(tensors["codes"]).char() - 8


class _Int4Rounding:
    def __init__(self, weight: "Tensor") -> None:
        largest = weight.float().abs().amax(-1)
        self.scales = (largest / 7).where(largest > 0, 1.0).half()
        self.codes = weight.new_empty(weight.shape).byte()

    def round(self, rest: "Tensor", column: int) -> "Tensor":
        codes = (rest[:, column] / self.scales.float()).round().clamp(-7, 7)
        self.codes[:, column] = (codes + 8).byte()
        return codes * self.scales.float()

    def tensors(self) -> "dict[str, Tensor]":
        from model.quantization.nvfp4 import pack_nibbles

        return {"codes": pack_nibbles(self.codes), "scales": self.scales}


'''
FORMAT = Addition(
    row="a quantization format",
    new={},
    edits=(
        Edit(FORMATS, "FORMATS: Mapping[str, Format] = {", before=INT4),
        Edit(FORMATS, "(Int8(), NVFP4()", after=", Int4()"),
        Edit(
            RECIPE,
            "    evaluate: EvaluateConfig = Field(",
            before='    int4: QuantizeConfig = Field(QuantizeConfig(format="int4"), description="In 4 bits.")\n',
        ),
        Edit(
            RECIPE,
            "    fp4: float = Field(0.05, ge=0,",
            before='    int4: float = Field(0.2, ge=0, description="Of the INT4 model, as a share.")\n',
        ),
        Edit(
            GRAPH,
            '        Form("fp4", quantize,',
            before='        Form("int4", quantize, r.int4, "dpo", limits.int4, lambda d: {"calibration": d.tokens}),\n',
        ),
    ),
    proof=(
        "tests/quantization/test_formats.py::test_a_format_stores_what_it_says[int4]",
        "tests/quantization/test_formats.py",
        "tests/flows/test_recipe.py",
        f"{ARCHITECTURE}::test_the_forms_of_a_model_are_named_in_the_graph_alone",
        f"{CHECKS}/check_format.py",
    ),
    compiled=True,
)

LOSS = Addition(
    row="a loss of DPO",
    new={},
    edits=(
        Edit(
            LOSSES,
            "PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {\n",
            before='''def aot_unpaired(rewards: Rewards) -> "Tensor":
    """Optimal transport between chosen and rejected answers of the batch (arXiv:2406.05882)."""
    return -log_sigmoid(rewards.chosen.sort().values - rewards.rejected.sort().values)


''',
            after='    "aot_unpaired": aot_unpaired,\n',
        ),
    ),
    proof=(
        "tests/training/test_preference.py::test_dpo_prefers_the_chosen[aot_unpaired]",
        "tests/training/test_preference.py",
        f"{CHECKS}/check_loss.py",
    ),
)

READER = Addition(
    row="a reader of files",
    new={"tasks/text/readers/subtitles.py": "subtitles.py"},
    edits=(
        Edit(READERS, "html, python, rows, ", after="subtitles, "),
        Edit(READERS, '    ".html": html.read_html,\n', after='    ".srt": subtitles.read_srt,\n'),
    ),
    proof=(
        *in_its_place("tasks.text.readers.subtitles"),
        "tests/text/test_readers.py",
        f"{CHECKS}/check_reader.py",
    ),
)

RULE = Addition(
    row="a rule of the filter",
    new={},
    edits=(
        Edit(WORDS, "    digit_share: float\n", after="    capital_share: float\n"),
        Edit(
            WORDS,
            "        digit_share=share(classes[DIGIT], visible),\n",
            after='        capital_share=share(sum("A" <= character <= "Z" for character in text), visible),\n',
        ),
        Edit(WORDS, "    newlines: int\n", after="    capitals: int\n"),
        Edit(WORDS, "hashes = ellipses = ", before="capitals = "),
        Edit(
            WORDS,
            "        newlines += int(text[i] == NEWLINE)\n",
            after="        capitals += int(65 <= text[i] <= 90)\n",
        ),
        Edit(WORDS, "_Characters(visible, digits, symbols, hashes, ellipses, newlines", after=", capitals"),
        Edit(
            WORDS,
            "        digit_share=share(seen.digits, seen.visible),\n",
            after="        capital_share=share(seen.capitals, seen.visible),\n",
        ),
        Edit(
            FILTER,
            "    max_digit_share: float = Field(",
            before='    max_capital_share: float = Field(1, ge=0, le=1, description="Maximum share of capitals.")\n',
        ),
        Edit(
            "tests/text/test_filter.py",
            '    "max_digit_share": (0.3, "123 45 ab"),\n',
            after='    "max_capital_share": (0.5, "SHOUTING all DAY LONG"),\n',
        ),
    ),
    proof=("tests/text/test_filter.py", "tests/corpus/test_features.py", f"{CHECKS}/check_rule.py"),
)

ADDITIONS = (STAGE, JUDGE, FORMAT, LOSS, READER, RULE)
