"""Sources of tokens: few names, every token owned, and figures of the sources that add up to the whole."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.network.shape import ModelConfig
from model.network.transformer import Transformer
from model.training.data import TokenSources, WindowBatches, fixed_rows
from model.training.objectives import NextToken
from tasks.tokens.files import MAX_SOURCES, report_names, token_sources
from tasks.train.pretrain import language_figures

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=32,
    context_length=32,
)  # fmt: skip


def test_the_largest_keep_their_names() -> None:
    few = {f"s{i}": i for i in range(MAX_SOURCES)}
    assert report_names(few) == {name: name for name in few}
    many = {f"s{i:02d}": i // 2 for i in range(MAX_SOURCES + 10)}
    found = report_names(many)
    assert found.keys() == many.keys() and len(set(found.values())) == MAX_SOURCES
    own = [name for name, reported in found.items() if reported == name]
    assert min(many[name] for name in own) >= max(size for name, size in many.items() if name not in own)


def test_every_token_has_its_source(tmp_path: Path) -> None:
    rows = [("b", "train", 0, 9), ("b", "validation", 3, 2), ("a", "validation", 0, 3), ("b", "validation", 5, 1)]
    table = pa.table({name: list(column) for name, column in zip(("source", "split", "start", "tokens"), zip(*rows))})
    pq.write_table(table, tmp_path / "spans.parquet")
    found = token_sources(tmp_path, "validation")
    assert found.names == ("a", "b")
    assert found.of(np.arange(6).reshape(2, 3)).tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("autocast", [True, False])
def test_sources_add_up_to_the_whole(autocast: bool) -> None:
    random = np.random.default_rng(0)
    stream = random.integers(0, 50, 401).astype(np.uint16)
    ends = np.cumsum(random.integers(1, 40, 40))
    sources = TokenSources(("a", "b", "never"), ends, random.integers(0, 2, 40))
    plan = fixed_rows(20)
    data = WindowBatches(stream, plan, 20, 0, np.arange(50, dtype=np.float32), sources=sources)
    batch = data.rows(np.arange(0, 20, 2), 10)  # rows shorter than windows, as in a ramp
    assert batch.source_ids is not None
    positions = [40 * i + j + 1 for i in range(10) for j in range(20)]
    expected = [int(sources.owners[np.argmax(ends > position)]) for position in positions]
    assert batch.source_ids.reshape(-1).tolist() == expected

    objective = NextToken(Transformer(CONFIG), sources=sources.names).eval()
    objective.transformer.initialize(0, "depth")
    plain = NextToken(objective.transformer).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sums = dict(zip(objective.names, objective(batch.tensors(torch.device("cpu")))[1].tolist(), strict=True))
        whole = dict(zip(plain.names, plain(batch.tensors(torch.device("cpu")))[1].tolist(), strict=True))
    for name in ("nll", "labels", "bytes"):
        assert sum(sums[f"{name}/{source}"] for source in sources.names) == pytest.approx(whole[name], rel=1e-6)
        assert sums[name] == pytest.approx(whole[name], rel=1e-6)
        assert sums[f"{name}/a"] > 0 and sums[f"{name}/b"] > 0
    figures = language_figures(sums)
    assert "bits_per_byte/a" in figures and "bits_per_byte/never" not in figures
    assert figures["bits_per_byte"] == pytest.approx(
        sum(figures[f"bits_per_byte/{s}"] * sums[f"bytes/{s}"] for s in ("a", "b")) / sums["bytes"]
    )
