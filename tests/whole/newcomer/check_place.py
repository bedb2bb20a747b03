"""What is imported is the copy in which this runs, and no other tree."""

from pathlib import Path

import flows
import model
import tasks
import tests


def test_the_packages_of_this_folder_are_imported() -> None:
    for package in (flows, tasks, model, tests):
        assert package.__file__ and Path(package.__file__).resolve().is_relative_to(Path.cwd().resolve())
