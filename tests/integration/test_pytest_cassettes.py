"""Cassettes, in pytest sessions of their own: recorded once, replayed from then on."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, guarded_step
from agentguard.testing import cassettes
from agentguard.testing.cassettes import CassetteError

pytest_plugins = ["pytester"]

TESTS = """
import asyncio
import os
import pytest
from dataclasses import dataclass
from agentguard import Budget, BudgetExceededError, Usage, guarded_step

NAME = os.environ.get("WHOM_TO_ASK", "ann")


class NoAddressError(Exception):
    pass


@dataclass
class Answer:
    text: str
    score: float


def tell(what):
    with open("told", "a") as file:
        file.write(what + "\\n")


@guarded_step(usage=Usage(usd="0.01"))
def look_up(name):
    tell(name)
    if name == "nobody":
        raise NoAddressError(name)
    return {"to": f"{name}@example.org"}


@guarded_step(kind="llm", usage=Usage(input_tokens=5))
async def ask(question: str) -> Answer:
    tell(question)
    for _ in range(20 * (3 - len(question))):  # turns, not time: on record in the same order each time
        await asyncio.sleep(0)
    return Answer(question, 0.5)


@pytest.mark.agentguard_cassette(budget=Budget(usd="1"))
def test_steps_values_and_errors(agentguard_cassette):
    run = agentguard_cassette.run
    assert look_up(NAME) == {"to": f"{NAME}@example.org"}
    with pytest.raises(NoAddressError):
        look_up("nobody")
    path = agentguard_cassette.path
    drawn = [str(run.uuid()), run.random(), run.now().isoformat()]
    assert run.record("drawn", lambda: drawn) == drawn
    with agentguard_cassette.guard.run("inside") as inside:
        look_up("inside")
    assert inside.id != run.id


@pytest.mark.agentguard_cassette
@pytest.mark.parametrize("name", ["plain", "a b/c"])
def test_by_its_marker_alone(name):
    look_up(name)


class TestInAClass:
    @pytest.mark.agentguard_cassette("gathered")
    def test_tasks(self):
        async def main():
            order = []
            async def one(question):
                answer = await ask(question)
                order.append(answer.text)
                return answer
            answers = await asyncio.gather(*(one("x" * n) for n in range(3)))
            return order, answers
        order, answers = asyncio.run(main())
        assert sorted(order) == ["", "x", "xx"]
        assert [answer.text for answer in answers] == ["", "x", "xx"]

    @pytest.mark.agentguard_cassette
    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_async(self):
        assert (await ask("why?")).score == 0.5


@pytest.mark.agentguard_cassette(budget=Budget(usd="0.02"))
def test_a_stop_is_no_error_of_the_test(agentguard_cassette):
    with pytest.raises(BudgetExceededError):
        for _ in range(5):
            look_up("again")
    assert agentguard_cassette.run.stop.resource == "usd"


def test_without_a_cassette():
    pass
"""
PLUGINS = ("-p", "no:langsmith_plugin", "-p", "no:xdist", "-p", "no:cacheprovider")
NAMES = {
    "test_steps_values_and_errors.jsonl",
    "test_by_its_marker_alone[plain].jsonl",
    "test_by_its_marker_alone[a-b-c]~ef24073a.jsonl",
    "gathered.jsonl",
    "TestInAClass.test_async[asyncio].jsonl",
    "test_a_stop_is_no_error_of_the_test.jsonl",
}


class Project:
    """A folder with a file of tests, and what their bodies tell."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.folder = pytester.path
        self.write(TESTS)
        pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def write(self, tests: str) -> None:
        self._pytester.makepyfile(test_mail=tests)

    def run(self, *arguments: str) -> pytest.RunResult:
        return self._pytester.runpytest_inprocess(*PLUGINS, "--strict-markers", *arguments)

    def run_as_a_user(self, *arguments: str) -> pytest.RunResult:
        return self._pytester.runpytest_subprocess(*PLUGINS, "--strict-markers", *arguments)

    def told(self) -> int:
        """How many bodies ran since the last look."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return len(lines)

    @property
    def cassettes(self) -> Path:
        return self.folder / "cassettes" / "test_mail"


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


def test_a_test_is_recorded_once_and_replayed_from_then_on(project: Project) -> None:
    first = project.run_as_a_user()
    first.assert_outcomes(passed=7)
    assert project.told() == 11
    files = {path.name: path.read_bytes() for path in project.cassettes.iterdir()}
    assert files.keys() == NAMES

    second = project.run_as_a_user()
    second.assert_outcomes(passed=7)
    assert project.told() == 0
    assert {path.name: path.read_bytes() for path in project.cassettes.iterdir()} == files

    third = project.run("--agentguard-record=none")
    third.assert_outcomes(passed=7)
    assert project.told() == 0


def test_recorded_again_only_what_is_new_each_time_differs(project: Project) -> None:
    """Ids, seeds, times and digests follow from the test; what the program itself took from a clock does not."""
    project.run()
    before = {path.name: path.read_text().splitlines() for path in project.cassettes.iterdir()}
    project.told()
    project.run("--agentguard-record=all").assert_outcomes(passed=7)
    assert project.told() == 11
    for path in project.cassettes.iterdir():
        lines = path.read_text().splitlines()
        changed = [new for old, new in zip(before[path.name], lines, strict=True) if old != new]
        kinds = {json.loads(line).get("key", "end") for line in changed}
        clock = {"main/run.now#1", "main/drawn#1", "end"}
        assert kinds == (clock if path.name.startswith("test_steps") else set())


def test_a_changed_program_fails_with_the_difference(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run()
    project.told()
    monkeypatch.setenv("WHOM_TO_ASK", "bob")
    result = project.run()
    result.assert_outcomes(passed=6, failed=1)
    assert project.told() == 0
    result.stdout.fnmatch_lines(
        [
            "*test_mail.py:*: *",
            "*ReplayDivergenceError: replay differs from the log (arguments) at main/look_up#1",
            "*  recorded: *'ann'*, {}*",
            "*  now: *'bob'*, {}*",
            '*-    "ann"',
            '*+    "bob"',
        ]
    )


SWALLOWING = """
import pytest
from agentguard import guarded_step

CALLS = %r

@guarded_step
def step(n):
    return n

@pytest.mark.agentguard_cassette
def test_it():
    for n in CALLS:
        try:
            step(n)
        except Exception:
            pass
    assert %r
"""


@pytest.mark.parametrize(
    ("calls", "holds", "said"),
    [
        ([1, 3], True, "arguments) at main/step#2"),
        ([1], True, "left_over) at main/step#2"),
        ([1, 2, 3], True, "missing) at main/step#3"),
        ([1, 2], False, "assert False"),
        ([1], False, "assert False"),
        ([1, 3], False, "arguments) at main/step#2"),
    ],
)
def test_no_except_swallows_a_difference_and_none_hides_a_failed_assertion(
    calls: list[int], holds: bool, said: str, project: Project
) -> None:
    project.write(SWALLOWING % ([1, 2], True))
    project.run().assert_outcomes(passed=1)
    project.write(SWALLOWING % (calls, holds))
    result = project.run("--tb=short")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E*{said.replace('[', '[[]')}*"])


def test_none_fails_clearly_where_there_is_no_cassette(project: Project) -> None:
    result = project.run("--agentguard-record=none")
    result.assert_outcomes(passed=1, errors=6)
    result.stdout.fnmatch_lines(
        ["*there is no cassette *gathered.jsonl; record it with --agentguard-record=once*"]
    )
    assert project.told() == 0
    assert not project.cassettes.exists()


def test_the_mode_can_be_set_in_the_ini_file(project: Project, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nagentguard_record = none")
    project.run().assert_outcomes(passed=1, errors=6)
    project.run("--agentguard-record=once").assert_outcomes(passed=7)
    pytester.makeini("[pytest]\nagentguard_record = sometimes")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*agentguard_record must be one of once, all, none, not 'sometimes'*"])


def test_a_test_that_fails_or_is_skipped_leaves_no_cassette(project: Project) -> None:
    project.write(
        SWALLOWING % ([1, 2], False) + "\n@pytest.mark.agentguard_cassette\ndef test_other(): pytest.skip()"
    )
    project.run().assert_outcomes(failed=1, skipped=1)
    assert not project.cassettes.exists()


def test_another_budget_than_the_recorded_one_is_a_difference(project: Project) -> None:
    project.run()
    project.write(TESTS.replace('Budget(usd="0.02")', 'Budget(usd="0.03")'))
    result = project.run()
    result.assert_outcomes(passed=6, errors=1)
    result.stdout.fnmatch_lines(["*recorded: {'usd': '0.02'}*", "*now: *{'usd': '0.03'}*"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text[:-80], "it is no JSON"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "it was cut off"),
        (lambda text: text.replace("ann@", "bob@"), "it is not what was recorded"),
        (
            lambda text: text.replace('"agentguard_cassette": 1', '"agentguard_cassette": 2'),
            "has format 2, not 1",
        ),
        (lambda text: "", "the file is no cassette of agentguard"),
        (lambda text: "[]\n", "line 1: it is no JSON object"),
    ],
    ids=["cut in a line", "cut", "edited", "newer", "empty", "something else"],
)
def test_a_damaged_cassette_is_refused_naming_the_fault(spoil: object, said: str, project: Project) -> None:
    project.run("-k", "steps_values")
    path = project.cassettes / "test_steps_values_and_errors.jsonl"
    path.write_text(spoil(path.read_text()))  # type: ignore[operator]
    project.told()
    result = project.run("-k", "steps_values")
    result.assert_outcomes(errors=1, deselected=6)
    result.stdout.fnmatch_lines([f"*{said}*--agentguard-record=all records it again*"])
    assert project.told() == 0
    project.run("-k", "steps_values", "--agentguard-record=all").assert_outcomes(passed=1, deselected=6)


def test_line_ends_that_git_changed_do_not_matter(project: Project) -> None:
    project.run("-k", "steps_values")
    path = project.cassettes / "test_steps_values_and_errors.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    project.run("-k", "steps_values", "--agentguard-record=none").assert_outcomes(passed=1, deselected=6)


SECRETS = """
import pytest
from agentguard import guarded_step

@guarded_step
def log_in(user, password):
    return len(password)

@guarded_step
def leak(fine):
    return {"note": "sk-" + "a1" * 20}

@guarded_step(redact=False)
def bare(note):
    return 1

@pytest.mark.agentguard_cassette
def test_redacted():
    assert log_in("ann", password="hunter2") == 7

@pytest.mark.agentguard_cassette
def test_result():
    leak(1)

@pytest.mark.agentguard_cassette
def test_shape():
    bare("sk-" + "a1" * 20)

@pytest.mark.agentguard_cassette(metadata={"url": "postgres://ann:" + "hunter2@db/app"}, redact=False)
def test_metadata():
    pass
"""


def test_secrets_are_redacted_and_what_looks_like_one_is_not_written(project: Project) -> None:
    project.write(SECRETS)
    result = project.run()
    result.assert_outcomes(passed=1, failed=3)
    (path,) = project.cassettes.iterdir()
    assert path.name == "test_redacted.jsonl"
    assert "hunter2" not in path.read_text()
    result.stdout.fnmatch_lines(
        [
            "*main/leak#1 could not be replayed from it: redacted*",
            "*test_shape.jsonl, line 5: refusing to write what looks like a secret (sk- keys*",
            "*test_metadata.jsonl, line 3: refusing to write what looks like a secret (passwords in URLs)*",
        ]
    )
    assert "a1a1a1" not in result.stdout.str().replace('"a1"', "")
    project.run("-k", "redacted", "--agentguard-record=none").assert_outcomes(passed=1, deselected=3)


# --- the format by itself ------------------------------------------------------------------------


@guarded_step
def echo(value: object) -> object:
    return value


def test_what_is_read_back_verifies_and_replays(tmp_path: Path) -> None:
    values = [None, True, -1.5, 2**60, "é\u2028\x00", {"k": [1, {"x": "y"}]}, "1e400", 1e16]
    path = tmp_path / "run.jsonl"
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("values", run_id="values", inputs={"some": "inputs"}) as run:
            for value in values:
                echo(value)
        events = cassettes.write(guard.components.store, run.id, path)
        assert events == len(guard.history(run.id))
        recorded = [(event.type, event.key, event.usage) for event in guard.history(run.id)]
    with Guard.in_memory(telemetry=False) as guard:
        assert cassettes.read(path, guard.components.store) == "values"
        assert guard.verify()
        assert [(event.type, event.key, event.usage) for event in guard.history("values")] == recorded
        with guard.replay("values") as replay:
            assert replay.inputs == {"some": "inputs"}
            assert [echo(value) for value in values] == values


def test_a_codecs_bytes_are_kept(tmp_path: Path) -> None:
    class Codec:
        def encode(self, value: complex) -> bytes:
            return bytes([255, int(value.real), int(value.imag)])

        def decode(self, data: bytes) -> complex:
            return complex(data[1], data[2])

    step = guarded_step(codec=Codec(), name="step")(lambda: 3 + 4j)
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("codec") as run:
            step()
        cassettes.write(guard.components.store, run.id, tmp_path / "run.jsonl")
    with Guard.in_memory(telemetry=False) as guard:
        run_id = cassettes.read(tmp_path / "run.jsonl", guard.components.store)
        with guard.replay(run_id):
            assert step() == 3 + 4j


def test_a_result_that_no_replay_could_serve_is_said_when_recording(tmp_path: Path) -> None:
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("r") as run:
            echo(object())
        with pytest.raises(CassetteError, match=r"main/echo#1 could not be replayed from it: .*object"):
            cassettes.write(guard.components.store, run.id, tmp_path / "run.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_one_inside_a_step_that_is_served_whole_does_not_matter(tmp_path: Path) -> None:
    @guarded_step
    def outer() -> int:
        echo(object())
        return 1

    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("r") as run:
            outer()
        cassettes.write(guard.components.store, run.id, tmp_path / "run.jsonl")
    with Guard.in_memory(telemetry=False) as guard:
        run_id = cassettes.read(tmp_path / "run.jsonl", guard.components.store)
        with guard.replay(run_id):
            assert outer() == 1


def test_an_error_of_a_cassette_carries_its_facts() -> None:
    error = CassetteError("cassettes/x.jsonl", 3, "it is no JSON")
    assert error.facts() == {"path": "cassettes/x.jsonl", "line": 3, "problem": "it is no JSON"}
    assert str(error) == "cassettes/x.jsonl, line 3: it is no JSON"
    assert str(CassetteError("x", None, "gone")) == "x: gone"


@pytest.mark.parametrize("payload", ['[1,  2, "spaced"]', "no JSON at all"])
def test_a_codecs_text_is_kept_as_it_was(tmp_path: Path, payload: str) -> None:
    class Codec:
        def encode(self, value: str) -> bytes:
            return value.encode()

        def decode(self, data: bytes) -> str:
            return data.decode()

    step = guarded_step(codec=Codec(), name="step")(lambda: payload)
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("codec") as run:
            step()
        cassettes.write(guard.components.store, run.id, tmp_path / "run.jsonl")
    with Guard.in_memory(telemetry=False) as guard:
        run_id = cassettes.read(tmp_path / "run.jsonl", guard.components.store)
        with guard.replay(run_id):
            assert step() == payload


@pytest.mark.parametrize(
    ("lines", "said"),
    [([], "it holds no run"), ([{"run": "r", "name": "r", "tenant": "t"}], "run r has no events")],
    ids=["no run", "no events"],
)
def test_a_whole_cassette_of_nothing_is_refused(tmp_path: Path, lines: list[Any], said: str) -> None:
    """As somebody may make one by a script: its last line says that all is there."""
    path = tmp_path / "run.jsonl"
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("r") as run:
            echo(1)
        cassettes.write(guard.components.store, run.id, path)
        first = path.read_text().splitlines()[0]
        text = "".join(f"{line}\n" for line in (first, *map(json.dumps, lines)))
        end = {"end": {"events": 0, "sha256": sha256(text.encode()).hexdigest()}}
        path.write_text(f"{text}{json.dumps(end)}\n")
        with pytest.raises(CassetteError, match=said):
            cassettes.read(path, guard.components.store)
