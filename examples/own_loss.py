"""A preference loss of one's own: entered under a name, it is a value of `dpo.loss_type` like any other.

    python -m examples.own_loss FOLDER

Squared hinge: as DPO's hinge, but pairs that are far off count for more. To keep it, write it into
`model/training/preference.py` itself; entered from outside, only processes that import this file know it.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model.training.preference import PREFERENCE_LOSSES, Rewards

if TYPE_CHECKING:
    from torch import Tensor


def squared_hinge(rewards: Rewards) -> "Tensor":
    """max(0, 1 - margin)^2 for each pair: (pairs,)."""
    return (1 - rewards.margin).relu() ** 2


PREFERENCE_LOSSES["squared_hinge"] = squared_hinge  # before recipes are imported: they take the names there are then


def main(folder: Path) -> None:
    """Train with it; the row of `dpo` says how often the better answer became the likelier one."""
    from examples.data import small_plan, write_data
    from flows.run import execute
    from flows.show.summary import render, summarise
    from tasks.mechanism.progress import console
    from tasks.mechanism.store import Store
    from tasks.track import open_tracker

    write_data(folder)
    plan = small_plan(folder, "dpo.loss_type=squared_hinge", "dpo.beta=0.5")
    record = execute(plan.recipe, plan.execution, open_tracker(plan.execution))
    console.print(render(summarise(Store(plan.execution.home), record)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
