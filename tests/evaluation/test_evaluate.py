"""Evaluation against transformers' own losses and the plain formulas; the same bytes whatever the batch."""

import json
import lzma
import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.scoring.text import cut_windows, document_nats, sequence_scores
from model.vocabulary.tokenizer import Tokenizer
from tasks.evaluation.evaluate import CLEAN_SHARE, EvaluateConfig, evaluate
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.models.quantize import QuantizeConfig, quantize
from tasks.tokens.files import read_overlap, sample_documents
from tests.helpers.inference import World, make_world, scores_of
from tests.helpers.training import artifact

SMALL: dict[str, Any] = {"validation_tokens": 4096, "document_tokens": 500, "answer_tokens": 12, "answers": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def evaluated(world: World, execution: Execution, model: Artifact, reference: Artifact, **settings: object) -> Artifact:
    inputs = {"model": model, "tokens": world.tokens, "preferences": world.preferences, "reference": reference}
    return build(evaluate, EvaluateConfig(**{**SMALL, **settings}), inputs, execution)  # type: ignore[arg-type]


def rows_of(evaluation: Artifact, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(evaluation.path / name).to_pylist()
    return found


def test_nats_equal_transformers(world: World, execution: Execution) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(world.model.path, dtype=torch.float32).eval()
    rows = rows_of(evaluated(world, execution, world.model, world.model), "documents.parquet")
    documents = list(sample_documents(world.tokens.path, "validation", 4096, 500))
    endoftext, window = Tokenizer.load(world.model.path).endoftext_id, 128
    assert [row["doc_id"] for row in rows] == [d.doc_id for d in documents]
    for row, document in zip(rows, documents):
        ids, nats = [endoftext, *document.ids.tolist()], 0.0
        for start in range(0, len(document.ids), window):
            piece = torch.tensor([ids[start : start + window + 1]])
            with torch.inference_mode():
                nats += float(theirs(piece, labels=piece).loss) * (piece.shape[1] - 1)
        assert row["nll_nats"] == pytest.approx(nats, rel=1e-5)
        assert row["tokens"] == len(document.ids) <= 500


def test_figures_follow_from_the_documents(world: World, execution: Execution) -> None:
    found = evaluated(world, execution, world.model, world.model)
    scores, rows = scores_of(found), rows_of(found, "documents.parquet")
    nats, size, tokens = (sum(row[name] for row in rows) for name in ("nll_nats", "bytes", "tokens"))
    assert scores["val_loss"] == pytest.approx(nats / tokens)
    assert scores["val_perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert scores["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    even = [row for row in rows if row["source"] == "even"]
    expected = sum(r["nll_nats"] for r in even) / math.log(2) / sum(r["bytes"] for r in even)
    assert scores["bits_per_byte/even"] == pytest.approx(expected)
    assert scores["size_bytes"] == (world.model.path / "model.safetensors").stat().st_size


def test_scores_say_what_they_owe_to_memory(world: World, execution: Execution) -> None:
    found = evaluated(world, execution, world.model, world.model)
    scores, rows = scores_of(found), rows_of(found, "documents.parquet")
    shares = read_overlap(world.tokens.path)
    covered = sum(shares[row["doc_id"]] * row["tokens"] for row in rows)
    assert scores["val_overlap"] == pytest.approx(covered / sum(row["tokens"] for row in rows))
    clean = [row for row in rows if shares[row["doc_id"]] < CLEAN_SHARE]
    assert 0 < len(clean) < len(rows)
    nats, size = (sum(row[name] for row in clean) for name in ("nll_nats", "bytes"))
    assert scores["val_bits_per_byte_clean"] == pytest.approx(nats / math.log(2) / size)


def test_bytes_are_those_of_the_text_that_was_scored(world: World, execution: Execution) -> None:
    texts = list(topics.values())[::8]
    found = evaluated(world, execution, world.model, world.model, validation_tokens=10**6, document_tokens=10**6)
    assert sorted(row["bytes"] for row in rows_of(found, "documents.parquet")) == sorted(len(t.encode()) for t in texts)
    rows = {d.doc_id: d for d in sample_documents(world.tokens.path, "validation", 10**6, 10**6)}
    tokenizer = Tokenizer.load(world.model.path)
    joined = b"".join(tokenizer.decode_bytes(rows[doc_id].ids.tolist()) for doc_id in sorted(rows))
    assert sorted(joined) == sorted("".join(texts).encode())
    expected = 8 * len(lzma.compress(joined, preset=9)) / len(joined)
    assert scores_of(found)["xz_bits_per_byte"] == pytest.approx(expected)


def test_a_better_model_scores_better(world: World, execution: Execution) -> None:
    early = scores_of(evaluated(world, execution, world.early, world.early))
    late = scores_of(evaluated(world, execution, world.model, world.model))
    assert late["val_bits_per_byte"] < early["val_bits_per_byte"] - 0.05


def test_rewards_are_gains_over_the_reference(world: World, execution: Execution) -> None:
    found = evaluated(world, execution, world.model, world.early)
    scores, rows = scores_of(found), rows_of(found, "preferences.parquet")
    reference = rows_of(evaluated(world, execution, world.early, world.early), "preferences.parquet")
    assert len(rows) == len(reference) == scores["preference_pairs"] == 8
    for ours, theirs in zip(rows, reference):
        assert ours["preference_id"] == theirs["preference_id"]
        chosen = ours["chosen_log_prob"] - theirs["chosen_log_prob"]
        margin = chosen - (ours["rejected_log_prob"] - theirs["rejected_log_prob"])
        assert ours["margin_over_reference"] == pytest.approx(margin, abs=1e-3)
    assert scores["reward_accuracy"] == np.mean([row["margin_over_reference"] > 0 for row in rows])
    assert "margin_over_reference" not in reference[0]
    assert "reward_accuracy" not in scores_of(evaluated(world, execution, world.model, world.model))


def test_quantized_models_are_compared_with_the_full_one(world: World, execution: Execution) -> None:
    full = scores_of(evaluated(world, execution, world.model, world.model))
    found = {}
    for weight_format in ("int8", "nvfp4"):
        config = QuantizeConfig(format=weight_format, calibration_tokens=2048, calibration_length=64)
        inputs = {"model": world.model, "calibration": world.tokens}
        small = build(quantize, config, inputs, execution)
        found[weight_format] = scores_of(evaluated(world, execution, small, world.model))
        assert found[weight_format]["val_perplexity"] == pytest.approx(full["val_perplexity"], rel=0.03)
        assert "reward_accuracy" not in found[weight_format]
    assert 0 < found["int8"]["kl"] < 1e-3 < found["nvfp4"]["kl"] < 0.02
    assert 1 > found["int8"]["top1_agreement"] > found["nvfp4"]["top1_agreement"] > 0.8
    assert found["nvfp4"]["size_bytes"] < found["int8"]["size_bytes"] < full["size_bytes"] / 3


def test_same_bytes_with_other_batches_and_threads(world: World, tmp_path: Path) -> None:
    executions = [
        Execution(home=tmp_path / "a", threads=1, micro_batch_tokens=128),
        Execution(home=tmp_path / "b", threads=2, micro_batch_tokens=100_000),
    ]
    assert len({evaluated(world, e, world.model, world.early).digest for e in executions}) == 1


def test_samples_answer_the_questions(world: World, execution: Execution) -> None:
    found = evaluated(world, execution, world.model, world.model)
    rows = [json.loads(line) for line in (found.path / "samples.jsonl").read_text().splitlines()]
    asked = [row["prompt"][0]["content"] for row in rows_of(world.preferences, "validation.parquet")]
    assert [row["prompt"] for row in rows] == asked[:2]
    assert all(row["answer"] for row in rows)
    own = evaluated(world, execution, world.model, world.model, prompts=("What is a class?",))
    rows = [json.loads(line) for line in (own.path / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["What is a class?"]


def test_the_sample_of_documents_hardly_moves_when_the_corpus_grows(world: World) -> None:
    before = [d.doc_id for d in sample_documents(world.tokens.path, "validation", 2000, 500)]
    more = [d.doc_id for d in sample_documents(world.tokens.path, "validation", 4000, 500)]
    assert before == more[: len(before)] == sorted(before)
    assert len(more) > len(before)


def test_windows_make_each_token_a_label_once() -> None:
    documents = [np.arange(10, 17), np.arange(20, 23), np.arange(30, 31)]
    windows = cut_windows(documents, opening=0, length=3)
    labels: list[int] = []
    for i in range(len(windows.sequences)):
        piece = windows.sequences.ids[windows.sequences.starts[i] : windows.sequences.starts[i + 1]].tolist()
        assert 2 <= len(piece) <= 4
        labels += piece[1:]
    assert labels == [*range(10, 17), 20, 21, 22, 30]
    assert windows.owners.tolist() == [0, 0, 0, 1, 2]


def test_documents_do_not_see_each_other(world: World) -> None:
    from tasks.models.folder import load_model

    model = load_model(world.model.path).eval()
    ids = [d.ids[:40] for d in sample_documents(world.tokens.path, "validation", 2000, 500)][:3]

    def nats(documents: list[Any]) -> Any:
        windows = cut_windows(documents, 508, 128)
        return document_nats(windows, sequence_scores(model, windows.sequences, 128, 1024), len(documents))

    np.testing.assert_allclose(nats(ids), np.concatenate([nats([one]) for one in ids]), rtol=1e-5)


def test_no_validation_text_is_refused(world: World, execution: Execution, tmp_path: Path) -> None:
    for path in world.tokens.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = pq.read_table(tmp_path / "spans.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "spans.parquet")
    inputs = {"model": world.model, "tokens": artifact(tmp_path), "preferences": world.preferences}
    with pytest.raises(ValueError, match="no validation text to score"):
        build(evaluate, EvaluateConfig(**SMALL), {**inputs, "reference": world.model}, execution)
