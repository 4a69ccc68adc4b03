"""A kill on one host stops every run on both, across network namespaces."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import hosts
from tests.scale import scaled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")


@pytest.mark.parametrize(
    ("runs", "processes"), [(16, 4), pytest.param(scaled(25) * 8, 8, marks=pytest.mark.long)]
)
def test_every_run_on_two_hosts_is_stopped_and_every_process_acknowledges(
    tmp_path: Path, runs: int, processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if not hosts.namespaces_work():
        pytest.skip(
            "no network namespaces can be made here: that needs ip (iproute2) and its right to make them"
        )
    reached = hosts.kill_everywhere(tmp_path, processes, runs)
    assert len(reached.ended) == runs
    assert (reached.facts["live"], reached.facts["acknowledged"]) == (processes, processes)
    each = (processes // 2, processes // 2)
    assert [(host["live"], host["acknowledged"]) for host in reached.facts["hosts"]] == [each, each]
    p95, last = (1000 * reached.ended[number] for number in (int(0.95 * runs), -1))
    with capsys.disabled():  # a figure of this machine, now; nothing here depends on it
        sys.stdout.write(f" [{runs} bodies ended after {p95:.0f} ms (p95), {last:.0f} ms (last)] ")
