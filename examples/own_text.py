"""Train on text of one's own, from Python instead of the command line: data in, run, summary, an answer.

python -m examples.own_text FOLDER
"""

import sys
from pathlib import Path

from examples.data import small_plan, write_data
from flows.graph import ROLES
from flows.run import execute
from flows.show.summary import render, summarise
from tasks.mechanism.progress import console
from tasks.mechanism.runs import artifact_of
from tasks.mechanism.store import Store
from tasks.models.chat import ChatModel
from tasks.track import open_tracker


def main(folder: Path) -> None:
    """Run the whole pipeline in this process; a second call finds everything built."""
    write_data(folder)
    plan = small_plan(folder)
    record = execute(plan.recipe, plan.execution, open_tracker(plan.execution))
    store = Store(plan.execution.home)
    console.print(render(summarise(store, record)))
    model = ChatModel.load(artifact_of(store, record.run_id, ROLES["served"]).path)
    question = {"role": "user", "content": "What is assert?"}
    answer = "".join(model.stream([question], max_tokens=20))
    print(f"{question['content']} {answer!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
