"""Two machines that share a mirror build each artifact once, and neither trusts bytes it did not check."""

from pathlib import Path
from typing import Any

import pytest

from flows.gc import collect, find_garbage
from flows.plan import Planner
from tasks.mechanism.execution import Execution
from tasks.mechanism.mirror import Mirror
from tasks.mechanism.stage import obtain
from tasks.mechanism.store import Store
from tests.conftest import require_module
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, double


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Execution, Execution]:
    mirror = str(tmp_path / "mirror")
    return Execution(home=tmp_path / "one", mirror=mirror), Execution(home=tmp_path / "two", mirror=mirror)


def test_the_second_machine_is_served(machines: tuple[Execution, Execution]) -> None:
    built = obtain(count, CountConfig(), {}, machines[0])
    served = obtain(count, CountConfig(), {}, machines[1])
    assert (built.status, served.status) == ("built", "cached")
    assert served.artifact.digest == built.artifact.digest
    assert served.artifact.path.is_relative_to(machines[1].home)
    assert (served.artifact.path / "numbers.txt").read_text() == "n0\nn1\nn2\n"


def test_the_plan_sees_what_others_built_and_brings_nothing_home(machines: tuple[Execution, Execution]) -> None:
    numbers = obtain(count, CountConfig(), {}, machines[0]).artifact
    obtain(double, DoubleConfig(), {"numbers": numbers}, machines[0])
    planner = Planner(machines[1])
    planner(double, DoubleConfig(times=3), numbers=planner(count, CountConfig()))
    planner(double, DoubleConfig(), numbers=numbers)
    assert [(row.label, row.status) for row in planner.rows] == [
        ("count", "cached"),
        ("double", "run"),
        ("double", "cached"),
    ]
    assert planner.rows[0].reason == "in the shared store"
    assert not Store(machines[1].home).manifests() and not list(machines[1].home.rglob("numbers.txt"))
    assert obtain(count, CountConfig(), {}, machines[1]).status == "cached"


def test_the_plan_does_not_count_on_half_an_upload(machines: tuple[Execution, Execution], tmp_path: Path) -> None:
    built = obtain(count, CountConfig(), {}, machines[0])
    (tmp_path / "mirror" / "objects" / f"{built.artifact.digest}.complete").unlink()
    planner = Planner(machines[1])
    planner(count, CountConfig())
    assert planner.rows[0].status == "run"


def test_a_collection_leaves_a_download_alone(machines: tuple[Execution, Execution], tmp_path: Path) -> None:
    """Collected at the worst moment: when the first file has come and the manifest has not."""
    obtain(count, CountConfig(), {}, machines[0])
    store = Store(machines[1].home)
    mirror = Mirror(str(tmp_path / "mirror"))
    found: list[list[Path]] = []

    class Files:
        """The mirror's files, with a collection after each download."""

        def __getattr__(self, name: str) -> Any:
            return getattr(mirror_files, name)

        def get_file(self, source: str, target: str) -> None:
            mirror_files.get_file(source, target)
            garbage = find_garbage(store, keep_runs=0)
            found.append(garbage.scratch)
            collect(store, garbage)

    mirror_files, mirror.files = mirror.files, Files()
    key = count.key(CountConfig(), {})
    with store.lock("count", key):
        assert mirror.pull(store, "count", key) is not None
        assert store.find("count", key) is not None
    assert found == [[], []], "one file of the artifact, and its curves"
    assert obtain(count, CountConfig(), {}, machines[1]).status == "cached"


def test_what_a_download_that_was_cut_off_left_is_not_published(machines: tuple[Execution, Execution]) -> None:
    built = obtain(count, CountConfig(), {}, machines[0])
    scratch = Store(machines[1].home).scratch("mirror", built.artifact.digest)
    (scratch / "rest").write_text("half")
    assert obtain(count, CountConfig(), {}, machines[1]).status == "cached"
    assert not scratch.exists()


def test_damage_in_the_mirror_is_not_brought_home(machines: tuple[Execution, Execution], tmp_path: Path) -> None:
    built = obtain(count, CountConfig(), {}, machines[0])
    (tmp_path / "mirror" / "objects" / built.artifact.digest / "numbers.txt").write_text("n9\n")
    assert obtain(count, CountConfig(), {}, machines[1]).status == "built"


def test_half_an_upload_is_a_miss(machines: tuple[Execution, Execution], tmp_path: Path) -> None:
    built = obtain(count, CountConfig(), {}, machines[0])
    (tmp_path / "mirror" / "objects" / f"{built.artifact.digest}.complete").unlink()
    assert obtain(count, CountConfig(), {}, machines[1]).status == "built"


def test_an_address_that_cannot_be_used_is_explained() -> None:
    with pytest.raises(ValueError, match=r"The shared store nope://x cannot be used.*s3://bucket"):
        Mirror("nope://x")


@pytest.mark.slow
def test_a_local_s3_server(machines: tuple[Execution, Execution], monkeypatch: pytest.MonkeyPatch) -> None:
    require_module("s3fs")
    server_module = require_module("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        shared = [machine.model_copy(update={"mirror": "s3://bessemer/store"}) for machine in machines]
        built, served = (obtain(count, CountConfig(), {}, machine) for machine in shared)
        assert (built.status, served.status) == ("built", "cached")
        assert served.artifact.digest == built.artifact.digest
    finally:
        server.stop()
