"""With the rule added: a recipe sets its threshold, and a document goes for its name; by default none does."""

from pathlib import Path

import pyarrow.parquet as pq

from flows.recipe import load_plan
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import build
from tasks.text.documents import attribute_shards
from tasks.text.filter import filter
from tests.helpers.data import PROSE, make_documents


def test_the_rule_drops(tmp_path: Path, execution: Execution) -> None:
    documents = make_documents(tmp_path / "documents", {"a": [PROSE, PROSE.upper()]})
    found = []
    for setting in ("max_capital_share=1", "max_capital_share=0.3"):
        settings = ["filter.languages=[]", "filter.pii=keep", "filter.min_stop_words=0", f"filter.{setting}"]
        judged = build(filter, load_plan("demo", settings).recipe.filter, {"documents": documents}, execution)
        found.append(pq.read_table(attribute_shards(judged)[0])["reason"].to_pylist())
    assert found == [["", ""], ["", "max_capital_share"]]
