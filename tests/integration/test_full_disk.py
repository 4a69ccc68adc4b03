"""A disk without room, done for real: the step is refused, and once there is room everything works again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentguard import Guard, StoreUnavailableError, guarded_step

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")

STEPS = 40


@guarded_step
def note(text: str) -> int:
    return len(text)


@guarded_step
async def anote(text: str) -> int:
    return len(text)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """No room left for as long as the block."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield
    filler.unlink()


def in_threads() -> list[object]:
    """What becomes of steps in four threads of the current run."""
    from agentguard import current_run

    def one(number: int) -> object:
        try:
            return note(f"{number}" * 4000)
        except StoreUnavailableError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        bound = current_run().bind(one)
        return list(pool.map(bound, range(STEPS)))


def in_tasks() -> list[object]:
    """What becomes of steps in tasks of the current run."""

    async def all_of_them() -> list[object]:
        calls = (anote(f"{number}" * 4000) for number in range(STEPS))
        return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("several", [in_threads, in_tasks], ids=["threads", "tasks"])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_store_works_again_when_there_is_room_again_without_a_restart(
    disk: Path, durability: str, several: object
) -> None:
    with Guard.open(f"sqlite:///{disk}/a.db", durability=durability, telemetry=False) as guard:
        with guard.run("agent", run_id="agent"):
            note("before")
            with filled(disk):
                outcomes = several()
                refused = [each for each in outcomes if isinstance(each, StoreUnavailableError)]
                assert refused, "the disk was not full"
                assert all(isinstance(each, int | StoreUnavailableError) for each in outcomes)
            with suppress(StoreUnavailableError):  # a run that lost events says so at most once more
                note("after")
            assert note("after") == 5
            assert several() == [len(f"{number}" * 4000) for number in range(STEPS)]
        assert guard.summary("agent").state == "COMPLETED"
        assert guard.verify()
        with guard.run("another"):
            assert note("later") == 5
