"""Values: a recorded exception comes back as its own type, with its arguments, attributes and group."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from agentguard import BudgetExceededError, Guard, guarded_step
from agentguard.errors import RecordedError
from agentguard.steps import exceptions


class Slotted(Exception):
    """One with a slot, and an `__init__` that does not take what it keeps."""

    __slots__ = ("code",)

    def __init__(self, *, code: int) -> None:
        super().__init__("no luck")
        self.code = code


class Batch(ExceptionGroup[Exception]):
    """A group of one's own."""


def noted() -> Exception:
    error = ValueError("x")
    error.add_note("at noon")
    return error


def caused() -> Exception:
    error = ValueError("x")
    error.__cause__ = KeyError("c")
    return error


def with_attributes() -> Exception:
    error = RuntimeError("it failed")
    error.status = 429  # type: ignore[attr-defined]
    error.headers = {"retry-after": ["3", 4]}  # type: ignore[attr-defined]
    error.pair = (1, b"\xff")  # type: ignore[attr-defined]
    return error


def seen(error: BaseException) -> Any:
    """All that a program can tell two exceptions apart by."""
    names = (
        "filename",
        "errno",
        "strerror",
        "name",
        "path",
        "start",
        "end",
        "object",
        "reason",
        "value",
        "code",
    )
    return (
        type(error),
        str(error),
        None if isinstance(error, BaseExceptionGroup) else error.args,
        {name: getattr(error, name, None) for name in names},
        vars(error),
        seen(error.__cause__) if error.__cause__ else None,
        [seen(each) for each in error.exceptions] if isinstance(error, BaseExceptionGroup) else None,
    )


def decoding() -> Exception:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xffabc".decode()
    return UnicodeDecodeError(*caught.value.args)


def parsing() -> Exception:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{x")
    return json.JSONDecodeError(caught.value.msg, caught.value.doc, caught.value.pos)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "no arguments": ValueError,
    "no key": KeyError,
    "a number": lambda: KeyError(5),
    "a tuple": lambda: KeyError((1, ("a",))),
    "data": lambda: ValueError("a", {"b": [1, None]}, b"\x00\xff"),
    "file": lambda: FileNotFoundError(2, "no such file", "f.txt"),
    "two files": lambda: OSError(18, "cross-device", "a", None, "b"),
    "os": lambda: ConnectionResetError(104, "reset"),
    "import": lambda: ImportError("no", name="n", path="p"),
    "attribute": lambda: AttributeError("no", name="n"),
    "unicode": decoding,
    "json": parsing,
    "process": lambda: subprocess.CalledProcessError(3, ["ls", "-l"], b"out", b"\xfferr"),
    "notes": noted,
    "cause": caused,
    "attributes": with_attributes,
    "slots": lambda: Slotted(code=3),
    "group": lambda: ExceptionGroup("g", [KeyError(1), ExceptionGroup("h", [noted(), OSError(2, "x", "f")])]),
    "group of one's own": lambda: Batch("b", [caused()]),
}


@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
def test_an_exception_comes_back_as_it_was(guard: Guard, make: Callable[[], BaseException]) -> None:
    @guarded_step
    def fails() -> None:
        raise make()

    def program() -> Any:
        try:
            fails()
        except Exception as error:
            return seen(error)

    with guard.run("program") as run:
        live = program()
    with guard.replay(run.id):
        assert program() == live


def test_what_a_task_group_raises_is_told_apart_by_except_star(guard: Guard) -> None:
    @guarded_step
    async def several() -> None:
        async def one(error: Exception) -> None:
            raise error

        async with asyncio.TaskGroup() as group:
            group.create_task(one(KeyError("k")))
            group.create_task(one(ValueError("v")))

    async def main() -> list[str]:
        told = []
        try:
            await several()
        except* KeyError as group:
            told.append(repr(group.exceptions))
        except* ValueError as group:
            told.append(repr(group.exceptions))
        return told

    with guard.run("program") as run:
        live = asyncio.run(main())
    with guard.replay(run.id):
        assert asyncio.run(main()) == live == ["(KeyError('k'),)", "(ValueError('v'),)"]


def test_no_code_of_an_exception_runs_when_it_comes_back() -> None:
    ran = []

    class Loud(Exception):
        def __init__(self, *args: Any) -> None:
            ran.append(args)
            super().__init__("loud")

    data = exceptions.capture(ExceptionGroup("g", [Loud()]))
    data["exceptions"][0]["type"] = f"{__name__}.Loud"
    globals()["Loud"] = Loud
    ran.clear()
    try:
        error = exceptions.restore(data)
    finally:
        del globals()["Loud"]
    assert isinstance(error, ExceptionGroup)
    assert type(error.exceptions[0]) is Loud
    assert ran == []


def test_a_stop_in_a_group_is_the_run_s_own() -> None:
    stop = BudgetExceededError("steps", 1, 0, 1, 1)
    own = BudgetExceededError("steps", 1, 0, 1, 1)
    error = exceptions.restore(exceptions.capture(ExceptionGroup("g", [stop])), lambda _: own)
    assert isinstance(error, ExceptionGroup)
    assert error.exceptions == (own,)


def test_a_group_too_large_to_keep_comes_back_as_recorded() -> None:
    deep: Exception = ValueError("v")
    for _ in range(10):
        deep = ExceptionGroup("g", [deep])
    for group in (deep, ExceptionGroup("g", [ValueError(n) for n in range(1000)])):
        data = exceptions.capture(group)
        assert len(json.dumps(data)) < 10_000
        assert isinstance(exceptions.restore(data), RecordedError)


def test_secrets_are_taken_out_of_whatever_is_kept(guard: Guard) -> None:
    secret = "sk-ant-api03-" + "a" * 40
    inside = ValueError({"password": "hunter2"}, (secret.encode(), secret))
    inside.add_note(secret)
    inside.__cause__ = KeyError([secret])

    @guarded_step
    def fails() -> None:
        raise ExceptionGroup(secret, [inside, subprocess.CalledProcessError(1, [secret], secret.encode())])

    with guard.run("program") as run, pytest.raises(ExceptionGroup):
        fails()
    stored = b"".join(event.body for event in guard.components.store.read(run.id))
    assert b"CalledProcessError" in stored
    assert b"aaaaaaaa" not in stored
    assert b"hunter2" not in stored


def test_what_an_older_log_kept_of_an_exception_is_enough() -> None:
    error = exceptions.restore({"type": "ValueError", "message": "m", "facts": {"status": 3}})
    assert (type(error), error.args, vars(error)) == (ValueError, ("m",), {"status": 3})
    group = exceptions.restore({"type": "ExceptionGroup", "message": "g (1 sub-exception)"})
    assert isinstance(group, RecordedError)
