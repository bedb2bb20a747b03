"""A graph of one's own, with a judge of one's own in it: `capitals` beside the filter, up to the tokens.

    python -m examples.own_judge FOLDER

Its stage stands in a file of its own, since the key of a stage names the module that its code is in, and `__main__`
names none.
"""

import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.capitals import CapitalsConfig, capitals
from examples.data import small_plan, write_data
from flows.graph import Sources
from flows.recipe import Recipe
from flows.run import InProcess, execute
from tasks.mechanism.runs import artifact_of
from tasks.mechanism.store import Store
from tasks.text.filter import filter
from tasks.text.ingest import ingest
from tasks.tokens.pack import pack
from tasks.tokens.tokenizer import tokenizer
from tasks.track import open_tracker

SHOUT = "THIS IS A TEXT THAT SHOUTS AT THE READER AND HAS NOTHING TO SAY TO ANYBODY. "


def prepare(recipe: Recipe, sources: Sources, run: InProcess) -> None:
    """As much of `flows/graph.py` as ends in tokens, with one judge more."""
    documents = run(ingest, recipe.ingest, corpus=sources.corpus)
    judged = {
        "filter": run(filter, recipe.filter, documents=documents),
        "capitals": run(capitals, CapitalsConfig(), documents=documents),
    }
    bpe = run(tokenizer, recipe.tokenizer, documents=documents, **judged)
    run(pack, recipe.pack, documents=documents, **judged, tokenizer=bpe)


def main(folder: Path) -> None:
    """Put a text that shouts among the others, and say what became of it."""
    write_data(folder)
    (folder / "text" / "shout.txt").write_text(SHOUT * 9)
    plan = small_plan(folder)
    record = execute(plan.recipe, plan.execution, open_tracker(plan.execution), body=prepare)
    judgement = artifact_of(Store(plan.execution.home), record.run_id, "capitals")
    reasons = pq.read_table(judgement.path / "attributes")["reason"]
    print(f"dropped by capitals: {len(reasons.filter(pc.not_equal(reasons, '')))} of {len(reasons)} documents")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
