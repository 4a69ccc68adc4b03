"""Hostile input at every entrance: it is refused plainly, or taken without harm to the log."""

from __future__ import annotations

import asyncio
import contextvars
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal

import pytest

from agentguard import Budget, Guard, ReplayDivergenceError, RunState, Usage, current_run, guarded_step


def named(value: object) -> str:
    """A parameter's name, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))[:40]


@guarded_step
def tool(*args: object, **kwargs: object) -> object:
    return args[0] if args else None


def intact(guard: Guard, run) -> bool:
    """Every step has an outcome, and the log says what the live run says."""
    types = [event.type for event in guard.history(run.id)]
    ended = types.count("step_completed") + types.count("step_failed")
    assert types.count("step_started") == ended
    assert guard.reconstruct(run.id) == guard.summary(run.id)
    return bool(guard.verify(run.id))


# --- names and ids ---------------------------------------------------------------------------------

BAD_NAMES = ["", "a\nb", "\x00", "\x1b[31m", "\ud800", "x" * 201, "\u202e", "tab\t"]
WRONG_NAMES = [None, 5, b"bytes", ["list"], object()]
GOOD_NAMES = [
    "a",
    "ä",
    "名前",
    "a b",
    "a/b#c%",
    "x" * 200,
    "'; DROP TABLE runs; --",
    "../../etc/passwd",
    "🦀",
]


@pytest.mark.parametrize("bad", [*BAD_NAMES, *WRONG_NAMES], ids=named)
@pytest.mark.parametrize(
    "entrance", ["run", "tenant", "run_id", "step", "scope", "attach", "branch", "kill", "kind"]
)
def test_names_that_are_refused(guard, entrance, bad):
    def use(run) -> None:
        if entrance == "run":
            guard.run(bad)
        elif entrance == "tenant":
            guard.run("r", tenant=bad)
        elif entrance == "run_id":
            guard.run("r", run_id=bad)
        elif entrance == "step":
            run.call(bad, int)
        elif entrance == "scope":
            run.scope(bad)
        elif entrance == "attach":
            guard.attach(bad)
        elif entrance == "branch":
            guard.attach(run.id, branch=bad)
        elif entrance == "kill":
            guard.kill(reason="r", run=bad)
        else:
            run.call("f", int, kind=bad)

    optional = {"tenant", "run_id", "branch"}
    with guard.run("r") as run:
        if bad is None and entrance in optional:
            use(run)
        else:
            with pytest.raises((ValueError, TypeError)):
                use(run)
    assert guard.kills() == []
    assert intact(guard, run)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_are_taken(sqlite_guard, name):
    with sqlite_guard.run(name, tenant=name, run_id=name) as run:
        with run.scope(name):
            run.call(name, lambda: None, kind=name, key=name)
        with sqlite_guard.attach(name, branch=name):
            tool()
    assert sqlite_guard.summary(name).name == name
    assert sqlite_guard.runs(tenant=name)[0].run_id == name
    assert intact(sqlite_guard, run)
    sqlite_guard.kill(tenant=name, reason=name)
    assert sqlite_guard.kills()[0].target == name


def test_the_control_logs_id_is_reserved(guard):
    with pytest.raises(ValueError, match="reserved"):
        guard.run("r", run_id="control")


def test_a_reason_cannot_pose_as_something_else(guard):
    """Control characters are shown as what they are, on terminals and in logs."""
    guard.kill(tenant="t", reason="fine\x1b[2K\rrun completed\n", actor="ann\x07")
    (kill,) = guard.kills()
    assert kill.reason.isprintable()
    assert kill.actor.isprintable()
    assert "\\x1b" in kill.reason


# --- arguments and results -------------------------------------------------------------------------


class Raising:
    """An object that raises whatever is asked of it."""

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __hash__(self) -> int:
        raise ZeroDivisionError

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise ZeroDivisionError

    def __len__(self) -> int:
        raise ZeroDivisionError

    def __iter__(self):
        raise ZeroDivisionError

    def model_dump(self, **options: object) -> dict:
        raise ZeroDivisionError

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError


class Liar:
    """Says that it is a string, and that it equals everything."""

    __class__ = str

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


class Dump:
    """A pydantic-like model whose dump is no better than itself."""

    def model_dump(self, **options: object) -> object:
        return self


class StrangeStr(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = str.__hash__


def cyclic() -> list:
    ring: list = []
    ring.append(ring)
    return ring


def cyclic_dict() -> dict:
    ring: dict = {}
    ring["self"] = {"again": ring}
    return ring


def deep() -> list:
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    return nested


HOSTILE = {
    "raising": Raising,
    "liar": Liar,
    "dump of itself": Dump,
    "strange str": lambda: StrangeStr("x"),
    "cyclic list": cyclic,
    "cyclic dict": cyclic_dict,
    "deep": deep,
    "surrogates": lambda: "\ud800\udfff",
    "surrogate keys": lambda: {"\ud800": 1},
    "control characters": lambda: "".join(map(chr, range(32))),
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "huge int": lambda: 10**10_000,
    "big int": lambda: 2**64,
    "complex": lambda: 1j,
    "type": lambda: type,
    "function": lambda: len,
    "module": lambda: math,
    "generator": lambda: (x for x in ()),
    "lock": __import__("threading").Lock,
    "exception": lambda: ValueError(Raising()),
    "mixed keys": lambda: {1: "a", (2,): "b", None: "c"},
    "set": lambda: {1, 2},
    "decimal": lambda: Decimal("NaN"),
    "memoryview": lambda: memoryview(b"x"),
    "not implemented": lambda: NotImplemented,
    "ellipsis": lambda: ...,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("capture", ["full", "digest", "none"])
def test_values_pass_through_a_step_unharmed(make, capture):
    """As argument, keyword, result, item and recorded value, whether or not they can be stored."""
    value = make()
    goes_on = isinstance(value, Iterator)  # as a result it is followed, and not handed out itself
    keep = guarded_step(lambda v, *, k: None if goes_on else v)
    expected = None if goes_on else value

    @guarded_step
    def items(v):
        yield v

    @guarded_step
    async def later(v):
        return None if goes_on else v

    with Guard.in_memory(telemetry=False, capture=capture) as guard:
        with guard.run("r", budget=Budget(steps=20, repeats=9)) as run:
            assert keep(value, k=value) is expected
            assert next(iter(list(items(value)))) is value
            assert asyncio.run(later(value)) is expected
            assert run.call("f", lambda v: expected, value) is expected
            assert run.record("v", lambda: value) is value
        assert run.state is RunState.COMPLETED
        assert run.spent.steps == 4
        assert intact(guard, run)


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_inputs_may_be_anything(guard, make):
    value = make()
    with guard.run("r", inputs=value) as run:
        assert run.inputs is value
        tool()
    assert intact(guard, run)


def test_one_input_that_cannot_be_encoded_loses_no_other(guard):
    @guard.run("r")
    def agent(*args, **kwargs):
        return current_run().id

    run_id = agent(1, object(), folder="/tmp", client=object())
    with guard.attach(run_id) as run:
        given, named = run.inputs["args"], run.inputs["kwargs"]
    assert (given[0], named["folder"]) == (1, "/tmp")
    for lost in (given[1], named["client"]):
        assert "not on record: object does not come back" in repr(lost)
        for use in (bool, str, len, iter, hash, lambda it: it(), lambda it: it.get, lambda it: it == 1):
            with pytest.raises(ReplayDivergenceError, match=r"run.inputs\['(args|kwargs)'\]"):
                use(lost)


@pytest.mark.parametrize(
    "bad",
    [{"k": object()}, {"k": "\ud800"}, {"\ud800": 1}, {5: Raising()}, cyclic_dict(), "text", 5, [1]],
    ids=["object", "surrogate", "surrogate key", "raising", "cyclic", "str", "int", "list"],
)
def test_metadata_is_plain_data(guard, bad):
    """It is part of the log and of the summary, so it must be what can be kept."""
    with guard.run("outer") as outer:
        with pytest.raises((TypeError, ValueError), match="metadata"), guard.run("inner", metadata=bad):
            pytest.fail("entered")
        tool()
    assert outer.state is RunState.COMPLETED
    assert [row.name for row in guard.runs()] == ["outer"]
    assert intact(guard, outer)


@pytest.mark.parametrize("payload", ["x" * 10_000_000, b"\x00" * 10_000_000], ids=["text", "bytes"])
def test_10_mb_on_disk(sqlite_guard, payload):
    """They lie beside the events, which stay small."""
    with sqlite_guard.run("r", metadata={"note": "y" * 100_000}) as run:
        assert tool(payload) is payload
    assert intact(sqlite_guard, run)
    stored = list(sqlite_guard.components.store.read(run.id))
    assert sum(len(s.payload or b"") for s in stored) > 20_000_000
    assert max(len(s.body) for s in stored) < 200_000


# --- exceptions ------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - that is the point  # noqa: PLE0307 - which is the point


class Attributed(Exception):
    def __init__(self) -> None:
        super().__init__(Raising(), "\ud800", 10**5000)
        self.raising = Raising()
        self.surrogate = "\ud800"
        self.huge = 10**5000
        self.nan = math.nan
        self.text = StrangeStr("x")
        self.__dict__["\ud801"] = "surrogate name"


class WithoutModule(Exception):
    pass


WithoutModule.__module__ = "\ud800"
WithoutModule.__qualname__ = "Where\nAm\x00I"


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class BadArgs(Exception):
    @property
    def args(self):
        raise ZeroDivisionError


class BadDict(Exception):
    @property
    def __dict__(self):
        raise ZeroDivisionError


ERRORS = {
    "unspeakable": Unspeakable,
    "not text": NotText,
    "surrogates": lambda: ValueError("\ud800 \udfff"),
    "10 MB": lambda: ValueError("x" * 10_000_000),
    "attributes": Attributed,
    "without a module": WithoutModule,
    "falsy": Falsy,
    "bad args": BadArgs,
    "bad dict": BadDict,
    "control characters": lambda: ValueError("\x00\x1b[2J\r\n"),
    "nested group": lambda: ExceptionGroup("g", [ExceptionGroup("h", [Unspeakable()])]),
    "os error": lambda: OSError(5, "io", "file\udcff"),
    "unicode error": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
}


@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("form", ["function", "coroutine", "generator", "block", "run"])
def test_errors_pass_through_unharmed(guard, make, form):
    error = make()

    def fail() -> None:
        raise error

    async def afail() -> None:
        raise error

    def gen():
        yield 1
        raise error

    with suppress(type(error)), guard.run("r") as run:
        with pytest.raises(type(error)) as raised:
            if form == "function":
                run.call("f", fail)
            elif form == "coroutine":
                # Not asyncio.run, which itself stumbles over the repr of a task's exception.
                loop = asyncio.new_event_loop()
                loop.run_until_complete(run.call("f", afail))
            elif form == "generator":
                list(run.call("f", gen))
            else:
                with run.step("f"):
                    fail()
        assert raised.value is error
        if form == "coroutine":
            loop.close()
        if form == "run":
            raise error
    assert run.state is (RunState.FAILED if form == "run" else RunState.COMPLETED)
    assert intact(guard, run)
    for event in guard.history(run.id):
        if "error" in event.data:
            assert len(event.data["error"]["message"]) < 3000


# --- user code inside our own calls ----------------------------------------------------------------


def bomb(*args: object, **kwargs: object) -> object:
    raise ZeroDivisionError


@pytest.mark.parametrize("option", ["reserve", "key", "approval"])
def test_callables_before_the_body_that_raise(guard, option):
    step = guarded_step(**{option: bomb})(lambda: pytest.fail("ran"))
    with guard.run("r") as run:
        with pytest.raises(ZeroDivisionError):
            step()
        tool()
    assert run.spent.steps == 1
    assert intact(guard, run)


class BadCodec:
    def encode(self, value: object) -> bytes:
        raise ZeroDivisionError

    decode = encode


class NoBytesCodec:
    def encode(self, value: object) -> bytes:
        return "text"  # type: ignore[return-value]

    decode = encode


@pytest.mark.parametrize("codec", [BadCodec(), NoBytesCodec()])
def test_a_codec_that_fails_costs_the_replay_alone(guard, codec):
    with guard.run("r") as run:
        assert guarded_step(codec=codec)(lambda: "result")() == "result"
    assert "codec" in [e for e in guard.history(run.id) if e.type == "step_completed"][0].data["unreplayable"]
    assert intact(guard, run)


@pytest.mark.parametrize("bad", ["not callable", 5, []])
def test_on_warning_must_be_callable(guard, bad):
    with pytest.raises(TypeError, match="on_warning"):
        guard.run("r", on_warning=bad)


@pytest.mark.parametrize("bad", [5, "usd", {"usd": 1}, Usage(usd=1), 0, False])
def test_budgets_must_be_budgets(guard, bad):
    with pytest.raises(TypeError, match="budget"):
        guard.run("r", budget=bad)
    with pytest.raises(TypeError, match="budget"):
        Guard.in_memory(default_budget=bad)
    with pytest.raises(TypeError, match="budget"):
        guard.set_tenant_budget("t", bad)
    with guard.run("r") as run, pytest.raises(TypeError, match="budget"):
        run.scope("s", bad)


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "eternal"},
        {"capture": "some"},
        {"ledger": "redis://db"},
        {"publisher": "kafka://"},
        {"durability": "buffered"},
        {"url": "mysql://db"},
        {"url": "sqlite://host/path"},
        {"url": "sqlite:///"},
        {"url": "nonsense"},
        {"kill_switch": "nonsense"},
    ],
    ids=named,
)
def test_options_of_a_guard(options):
    url = options.pop("url", "memory://")
    with pytest.raises((ValueError, TypeError)), Guard.open(url, **options) as guard:
        guard.runs()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_ledger_that_is_gone_says_what_to_use(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    options = {}
    if how == "option":
        options["ledger"] = "redis://db"
    else:
        monkeypatch.setenv("AGENTGUARD_LEDGER", "redis://db")
    with pytest.raises(ValueError, match=r"no ledger apart from the store any more.*give them one store"):
        Guard.in_memory(**options)


@pytest.mark.parametrize("call", ["summary", "history", "reconstruct", "verify", "attach", "pause", "resume"])
@pytest.mark.parametrize("run_id", ["nobody", "x' OR '1'='1", "%", ""])
def test_questions_about_nobody(sqlite_guard, call, run_id):
    with pytest.raises((LookupError, ValueError)):
        getattr(sqlite_guard, call)(run_id)


def test_amounts_add_up_beyond_any_machine_word(sqlite_guard):
    """2**63 - 1 of something, several times, is still counted and logged."""
    most = Usage(emails=2**63 - 1)
    with sqlite_guard.run("r") as run:
        for _ in range(4):
            run.call("f", lambda: None, usage=most)
    assert sqlite_guard.summary(run.id).usage["emails"] == 4 * (2**63 - 1)
    assert intact(sqlite_guard, run)


def test_a_tenants_amounts_add_up_beyond_any_machine_word(sqlite_guard):
    sqlite_guard.set_tenant_budget("t", Budget(steps=100))
    with sqlite_guard.run("r", tenant="t") as run:
        for _ in range(4):
            run.call("f", lambda: None, usage=Usage(emails=2**63 - 1))
    account = sqlite_guard.components.store.accounts(["tenant:t"])["tenant:t"]
    assert account.spent["emails"] == 4 * (2**63 - 1)
    assert intact(sqlite_guard, run)


def test_a_step_that_closes_its_own_run(guard):
    def agent() -> None:
        run = guard.start("r")
        assert run.call("f", run.close) is None
        assert run.state is RunState.COMPLETED
        assert intact(guard, run)

    contextvars.copy_context().run(agent)


def test_recursion_without_end(guard):
    """The interpreter's own limit ends it; what had begun has an outcome."""
    step = guarded_step(name="deep")(lambda: step())
    with guard.run("r") as run, pytest.raises(RecursionError):
        step()
    assert guard.verify(run.id)
    assert guard.reconstruct(run.id) == guard.summary(run.id)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (TypeError, "at must be", lambda guard: guard.fork("r", at=True)),
        (TypeError, "at must be", lambda guard: guard.fork("r", at="2")),
        (TypeError, "budget must be a Budget, not int", lambda guard: guard.fork("r", at=2, budget=5)),
        (TypeError, "budget must be a Budget, not int", lambda guard: guard.what_if("r", 5)),
        (TypeError, "anchors must be", lambda guard: guard.verify(anchors=5)),
        (TypeError, "anchors: that of run r", lambda guard: guard.verify(anchors={"r": 5})),
        (TypeError, "anchors: that of run r", lambda guard: guard.verify(anchors={"r": (1, 2)})),
        (ValueError, "limit must be 0 or more", lambda guard: guard.runs(limit=-1)),
        (TypeError, "limit must be an int", lambda guard: guard.runs(limit=True)),
        (ValueError, "limit must be 0 or more", lambda guard: guard.events(limit=-1)),
        (TypeError, "detached must be", lambda guard: guard.run("r", detached="yes")),
        (TypeError, "interrupt_threads must be", lambda guard: guard.run("r", interrupt_threads=1)),
        (ValueError, "name must have", lambda _: guarded_step(name="")(named)),
        (ValueError, "url must not be empty", lambda _: Guard.open("")),
        (TypeError, "url must be a str", lambda _: Guard.open(5)),
        (ValueError, "no event store for 'mysql://host'; known are", lambda _: Guard.open("mysql://host")),
        (ValueError, "no event store for 'x://h/'", lambda _: Guard.open("x://u:password@h/")),
        (ValueError, "memory:// takes no name", lambda _: Guard.open("memory://runs")),
        (ValueError, "memory:// takes no name", lambda _: Guard.open("memory:")),
        (ValueError, "no kill_switch ''; known are", lambda _: Guard.open(kill_switch="")),
        (
            ValueError,
            "no kill_switch 'etcd://h'; known are",
            lambda _: Guard.in_memory(kill_switch="etcd://h"),
        ),
    ],
)
def test_odd_arguments_are_named(guard, error, said, call):
    guard.start("r", run_id="r").close()
    with pytest.raises(error, match=said):
        call(guard)
