"""What every kill switch promises, whatever carries it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agentguard._clock import Clock
from agentguard.errors import KillSwitchUnavailableError
from agentguard.events.codec import chain, decode, genesis
from agentguard.events.model import CONTROL_RUN_ID, KILL_SET, TENANT_BUDGET_SET
from agentguard.killswitch.kill_requests import kill_data, revive_data
from agentguard.killswitch.model import GENERATION
from agentguard.protocols import HeadMovedError, KillSwitch
from agentguard.testing.conformance._given import DEADLINE, wait_until


class KillSwitchContract:
    """The contract of `agentguard.protocols.KillSwitch`, as tests.

    Example:
        In a test file of yours, which pytest collects::

            class TestMySwitch(KillSwitchContract):
                @pytest.fixture
                def switch(self, tmp_path, clock):
                    switch = MySwitch(tmp_path, clock=clock)
                    yield switch
                    switch.close()
    """

    @pytest.fixture
    def clock(self) -> Clock:
        """A clock that stands still, for the switch to be made with."""
        return Clock(wall=lambda: 42)

    @pytest.fixture
    def switch(self, clock: Clock) -> Iterator[KillSwitch]:
        """The switch under test."""
        raise NotImplementedError("override this fixture: yield your KillSwitch, then close it")

    def test_a_new_switch_stops_nobody(self, switch: KillSwitch) -> None:
        assert switch.signal[GENERATION] == 0
        assert switch.find("acme", "r1", since=0) is None
        assert switch.kills() == []
        assert list(switch.read()) == []

    def test_the_generation_is_the_sequence_of_the_newest_record(self, switch: KillSwitch) -> None:
        signal = switch.signal
        for expected in (1, 2, 3):
            assert switch.record(*kill_data("why", run=f"r{expected}")) == expected
            assert signal[GENERATION] == expected
        assert switch.record(TENANT_BUDGET_SET, {"tenant": "acme"}) == 4
        assert signal[GENERATION] == 4

    def test_the_signal_cannot_be_written_by_its_readers(self, switch: KillSwitch) -> None:
        with pytest.raises(TypeError, match="read-only"):
            switch.signal[GENERATION] = 9

    def test_a_kill_is_found_with_what_was_said(self, switch: KillSwitch) -> None:
        generation = switch.record(*kill_data("bad prompt", tenant="acme", actor="ann"))
        kill = switch.find("acme", "r1", since=generation)
        assert kill is not None
        assert kill == ("tenant", "acme", "bad prompt", "ann", 42, generation, False)
        assert switch.find("other", "r1", since=0) is None

    def test_an_active_kill_stops_runs_created_after_it_until_revived(
        self,
        switch: KillSwitch,
    ) -> None:
        killed = switch.record(*kill_data("why", run="r1"))
        found = switch.find("acme", "r1", since=killed)
        assert found is not None
        assert found.generation == killed
        revived = switch.record(*revive_data("fixed", run="r1"))
        assert switch.find("acme", "r1", since=revived) is None
        assert switch.find("acme", "r1", since=0) is not None
        assert [kill.cleared for kill in switch.kills()] == [True]

    def test_a_kill_of_others_between_two_look_ups_hides_none(self, switch: KillSwitch) -> None:
        assert switch.find("acme", "r1", since=0) is None
        for number in range(5):
            switch.record(*kill_data("why", run=f"other-{number}"))
            assert switch.find("acme", "r1", since=0) is None
        switch.record(*kill_data("why", run="r1"))
        switch.record(*kill_data("why", run="other"))
        kill = switch.find("acme", "r1", since=0)
        assert kill is not None
        assert kill.target == "r1"

    def test_the_control_log_is_a_chain_that_others_can_verify(self, switch: KillSwitch) -> None:
        switch.record(*kill_data("why"))
        switch.record(TENANT_BUDGET_SET, {"tenant": "acme", "usd": "1"})
        switch.record(*revive_data("fixed"))
        hashed = genesis(CONTROL_RUN_ID)
        for number, stored in enumerate(switch.read(), 1):
            hashed = chain(hashed, stored.body)
            assert stored.hash == hashed
            assert stored.seq == number == decode(stored.body).seq
            assert decode(stored.body).at_ns == 42
        assert [stored.seq for stored in switch.read(after=1)] == [2, 3]
        assert list(switch.read(after=3)) == []

    def test_a_kill_without_its_facts_is_refused_and_writes_nothing(self, switch: KillSwitch) -> None:
        with pytest.raises(ValueError, match="scope"):
            switch.record(KILL_SET, {"reason": "why"})
        with pytest.raises(ValueError, match="reason"):
            switch.record(KILL_SET, {"scope": "global"})
        with pytest.raises(TypeError):
            switch.record(TENANT_BUDGET_SET, {"tenant": object()})
        assert switch.signal[GENERATION] == 0
        assert list(switch.read()) == []

    def test_a_record_that_is_to_follow_another_one_does_or_is_not_written(self, switch: KillSwitch) -> None:
        told = {"tenant": "acme"}
        assert switch.record(TENANT_BUDGET_SET, told, after=0) == 1
        for moved in (0, 2):
            with pytest.raises(HeadMovedError):
                switch.record(TENANT_BUDGET_SET, told, after=moved)
        assert switch.record(TENANT_BUDGET_SET, told, after=1) == 2
        assert [stored.seq for stored in switch.read()] == [1, 2]
        assert switch.signal[GENERATION] == 2

    def test_of_many_that_are_to_follow_one_record_one_does(self, switch: KillSwitch) -> None:
        written: list[int] = []

        def record(number: int) -> None:
            with suppress(HeadMovedError):
                written.append(switch.record(TENANT_BUDGET_SET, {"tenant": str(number)}, after=0))

        threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert written == [1]
        assert [stored.seq for stored in switch.read()] == [1]

    def test_whoever_joined_is_told_of_each_newest_generation(self, switch: KillSwitch) -> None:
        told: list[int] = []
        participant = switch.join(told.append)
        assert told == []
        assert switch.record(*kill_data("why", run="r1")) == 1
        wait_until(lambda: told == [1])
        assert switch.record(*kill_data("why", run="r2")) == 2
        wait_until(lambda: told == [1, 2])
        participant.leave()

    def test_whoever_left_is_told_nothing(self, switch: KillSwitch) -> None:
        left: list[int] = []
        stayed: list[int] = []
        leaver = switch.join(left.append)
        stayer = switch.join(stayed.append)
        leaver.leave()
        leaver.leave()
        switch.record(*kill_data("why"))
        wait_until(lambda: stayed == [1])
        assert left == []
        stayer.leave()
        assert switch.acknowledgements(1, timeout=0).live == 0

    def test_on_change_may_use_the_switch(self, switch: KillSwitch) -> None:
        found: list[object] = []
        switch.join(lambda generation: found.append(switch.find("acme", "r1", since=0)))
        switch.record(*kill_data("why", run="r1"))
        wait_until(lambda: found)
        assert found == switch.kills()

    def test_nobody_there_is_nobody_acknowledging(self, switch: KillSwitch) -> None:
        generation = switch.record(*kill_data("why"))
        assert switch.acknowledgements(generation, timeout=5)[:2] == (0, 0)

    def test_a_process_acknowledges_when_all_who_joined_have_acted(self, switch: KillSwitch) -> None:
        gate = threading.Event()
        waiting = threading.Event()

        def slow(generation: int) -> None:
            waiting.set()
            assert gate.wait(DEADLINE)

        switch.join(lambda generation: None)
        switch.join(slow)
        recorder = threading.Thread(target=switch.record, args=kill_data("why"))
        recorder.start()
        assert waiting.wait(DEADLINE)
        live, acknowledged, seconds = switch.acknowledgements(1, timeout=0.05)
        assert (live, acknowledged) == (1, 0)
        assert seconds >= 0.05
        gate.set()
        live, acknowledged, seconds = switch.acknowledgements(1, timeout=DEADLINE)
        assert (live, acknowledged) == (1, 1)
        assert seconds < DEADLINE
        recorder.join()

    def test_on_change_that_raises_is_logged_and_is_no_acknowledgement(
        self, switch: KillSwitch, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[int] = []

        def fails(generation: int) -> None:
            told.append(generation)
            raise RuntimeError("cannot act")

        participant = switch.join(fails)
        generation = switch.record(*kill_data("why"))
        wait_until(lambda: told)
        assert switch.acknowledgements(generation, timeout=0.05)[:2] == (1, 0)
        wait_until(lambda: "cannot act" in caplog.text)
        participant.acknowledge(generation)
        assert switch.acknowledgements(generation, timeout=DEADLINE)[:2] == (1, 1)
        participant.leave()

    def test_threads_that_record_get_generations_without_gaps(self, switch: KillSwitch) -> None:
        generations: list[int] = []

        def work(name: int) -> None:
            orders = (kill_data("why", run=f"r{name}-{number}") for number in range(5))
            generations.extend(switch.record(*order) for order in orders)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(generations) == list(range(1, 21))
        assert [stored.seq for stored in switch.read()] == list(range(1, 21))
        assert len(switch.kills()) == 20

    def test_a_closed_switch_refuses(self, switch: KillSwitch) -> None:
        signal = switch.signal
        switch.join(lambda generation: None)
        switch.close()
        switch.close()
        for use in (
            lambda: switch.signal,
            lambda: switch.find("acme", "r1", since=0),
            switch.kills,
            switch.read,
            lambda: switch.record(*kill_data("why")),
            lambda: switch.join(lambda generation: None),
            lambda: switch.acknowledgements(1, timeout=0),
        ):
            with pytest.raises(KillSwitchUnavailableError, match="closed"):
                use()
        assert signal[GENERATION] == 0
