"""Our scores of benchmark questions against lm-eval's on the same exported model and the same file."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tasks.evaluation.evaluate import EvaluateConfig, evaluate
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.text.source import resolve_source
from tests.helpers.inference import World, make_world, scores_of

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
metadata: {{version: 1.0}}
"""
CHOICE = """doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}"""
LIKELIHOOD = """metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def write_benchmarks(folder: Path) -> Path:
    """Which of four texts goes on a help topic; how likely the right one is; and whether the next word is "the".

    Some prompts exceed the context.
    """
    folder.mkdir()
    words = [text.split() for text in topics.values() if len(text.split()) > 300][:40]
    several, single, next_word = [], [], []
    for number, text in enumerate(words):
        prompt = " ".join(text[: 280 if number % 10 == 0 else 5 + number])
        choices = [" ".join(words[(number + k) % len(words)][50 : 52 + k]) for k in range(4)]
        next_word.append({"question": prompt, "choices": ["the"], "answer": "the"})
        prompt = f"Question: {prompt}\nAnswer:"
        several.append({"question": prompt, "choices": choices, "answer": number % 4})
        single.append({"question": prompt, "choices": choices[:1], "answer": choices[0]})
    for name, rows in (("several", several), ("single", single), ("next_word", next_word)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ours(world: World, folder: Path, execution: Execution, **settings: object) -> dict[str, float]:
    inputs = {"model": world.model, "tokens": world.tokens, "preferences": world.preferences, "reference": world.model}
    source = resolve_source(str(folder), execution.home / "cache")
    cfg = EvaluateConfig(validation_tokens=256, answers=0, preference_pairs=0, **settings)  # type: ignore[arg-type]
    return scores_of(build(evaluate, cfg, {**inputs, "benchmarks": source}, execution))


def theirs(model: Artifact, benchmarks: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    folder.mkdir()
    for name, output_type, target, more in (
        ("several", "multiple_choice", "answer", CHOICE),
        ("single", "loglikelihood", '" {{answer}}"', LIKELIHOOD),
        ("next_word", "loglikelihood", '" {{answer}}"', LIKELIHOOD),
    ):
        path = (benchmarks / f"{name}.jsonl").absolute()
        text = TASK.format(name=name, path=path, output_type=output_type, target=target, more=more)
        (folder / f"{name}.yaml").write_text(text)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    arguments = {"pretrained": str(model.path), "dtype": "float32", "device": "cpu"}
    results = lm_eval.simple_evaluate("hf", arguments, ["several", "single", "next_word"], batch_size=16,
                                      task_manager=manager, bootstrap_iters=0)["results"]  # fmt: skip
    names = [("acc", "several"), ("acc_norm", "several"), ("perplexity", "single")]
    names += [("acc", "single"), ("acc", "next_word"), ("perplexity", "next_word")]
    return {f"{metric}/{task}": float(results[task][f"{metric},none"]) for metric, task in names}


@pytest.mark.slow
def test_scores_equal_those_of_lm_eval(
    world: World, execution: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = write_benchmarks(tmp_path / "benchmarks")
    found = ours(world, benchmarks, execution, question_format="{question}")
    expected = theirs(world.model, benchmarks, tmp_path / "lm_eval", monkeypatch)
    assert 0 < expected["acc/next_word"] < 1
    assert 0 < expected["acc/several"] < 1 and expected["acc/several"] != expected["acc_norm/several"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "line 1: answer is 2, expected"),
        ({"question": "a", "choices": "b", "answer": 0}, "choices must be a list of texts"),
        ({"ask": "a", "choices": ["b"], "answer": 0}, "no field 'question'.*evaluate.question_format"),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused(
    world: World, execution: Execution, tmp_path: Path, row: dict[str, object], message: str
) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        ours(world, path, execution)


def test_records_without_choices_are_no_questions(world: World, execution: Execution, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n")
    assert not [name for name in ours(world, path, execution) if name.startswith(("acc", "perplexity"))]
