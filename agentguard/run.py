"""A run as its user holds it: the block, its steps and scopes, and what can be read of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import uuid as uuid_module
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Token
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from agentguard._reentry import at_its_call, covered, finish
from agentguard.budget.model import Budget, BudgetChange, Remaining, Usage
from agentguard.budget.named import joined
from agentguard.budget.resources import NANO_USD
from agentguard.errors import AgentGuardError, NoActiveRunError, RunStopped
from agentguard.runs.branch import MAIN, Branch, check_branch
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary
from agentguard.sessions.base import Session
from agentguard.steps import bound, call, interrupt, recorded, tasks
from agentguard.steps.block import StepBlock
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.exit_rule import raise_on_exit
from agentguard.steps.kinds import check_followed
from agentguard.steps.live import LiveRun
from agentguard.steps.model import InRun, Position, on_branch
from agentguard.steps.scope import Scope
from agentguard.steps.shielding import shielded
from agentguard.steps.spinning import check_place
from agentguard.tenancy import check_id

T = TypeVar("T")

#: How often, in seconds, a block that is left looks whether its run is drained.
_MOMENT = 0.01
#: The attribute of a function that `@guard.run(...)` made a run of, whose value is that `Run`.
DECORATED = "__agentguard_run__"


class Run:
    """One guarded execution.  Made by `guard.run(...)`; use it as `with` or `async with`.

    Inside the block, guarded steps belong to this run.  Leaving it ends the run: COMPLETED, or
    KILLED or FAILED with the stop, which is raised then whatever the code inside swallowed.
    None of the readings does I/O.

    Example:
        >>> from agentguard import Budget, Guard, guarded_step
        >>> @guarded_step
        ... def add(a: int, b: int) -> int:
        ...     return a + b
        >>> with Guard.in_memory() as guard, guard.run("sums", budget=Budget(steps=3)) as run:
        ...     total = add(add(1, 2), 3)
        >>> total, run.state, run.spent.steps, run.remaining.steps
        (6, <RunState.COMPLETED: 'COMPLETED'>, 2, 1)
    """

    def __init__(self, session: Session, again: Callable[[dict[str, Any]], Run] | None = None) -> None:
        self._session = session
        self._again = again
        self._live_run: LiveRun | None = None
        self._token: Token[InRun | None] | None = None
        self._position: Position | None = None
        #: What was current before.
        self._before: InRun | None = None
        #: What restores it in the context in which the run was entered, where it was left in another.
        self._entered_elsewhere: Token[InRun | None] | None = None
        self._branch: Branch | None = None
        #: The thread that entered the block; others need names of their own to be told apart.
        self.thread = 0

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # a copy of what holds a run holds the same run

    def __reduce__(self) -> Any:
        raise TypeError(
            f"run {self.id} is alive in this process and cannot be pickled: send its id, and join it "
            "there with guard.attach(run_id)"
        )

    # --- what it is ----------------------------------------------------------------------------

    @property
    def live_run(self) -> LiveRun:
        """The run's log in this process; for agentguard's own rooms."""
        if self._live_run is None:
            raise NoActiveRunError(f"run {self.id} has not been entered: use `with guard.run(...) as run:`")
        return self._live_run

    @property
    def session(self) -> Session:
        """How the run is opened and left; for agentguard's own rooms."""
        return self._session

    @property
    def id(self) -> str:
        """The run's id."""
        return self._session.run_id

    @property
    def name(self) -> str:
        """The run's name."""
        return self._session.name

    @property
    def tenant(self) -> str:
        """Whose run it is."""
        return self._session.tenant

    @property
    def inputs(self) -> Any:
        """What the run was given."""
        return self._session.inputs

    @property
    def state(self) -> RunState:
        """Where the run is in its life, as far as this process knows."""
        return RunState.CREATED if self._live_run is None else self._live_run.fold.state

    @property
    def stop(self) -> RunStopped | None:
        """What stopped the run, if anything did; after a drain, what its code is told."""
        live_run = self._live_run
        if live_run is None or live_run.stop is not None or live_run.draining is None:
            return None if live_run is None else live_run.stop
        return live_run.draining.stop

    @property
    def spent(self) -> Usage:
        """What the run has used, nested runs included."""
        return Usage.from_amounts(self.live_run.spent())

    @property
    def remaining(self) -> Remaining:
        """What its own budget leaves, reservations in flight taken off; None without a limit."""
        return Remaining(self.live_run.remaining())

    @property
    def warnings(self) -> tuple[dict[str, Any], ...]:
        """The budget warnings given so far."""
        return () if self._live_run is None else tuple(self._live_run.fold.warnings)

    def summary(self) -> RunSummary:
        """Return the run in a few lines."""
        return self.live_run.summary()

    # --- the block -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._live_run is not None:
            raise RuntimeError(f"run {self.id} was entered before; open a new one")
        try:
            self._enter()
            return self  # noqa: TRY300 - or a signal handler raises here
        except AgentGuardError:
            raise
        except BaseException as error:  # of a signal handler, perhaps: there will be no `__exit__`
            self._cut_short(functools.partial(self._give_up, error))
            raise

    def _enter(self) -> None:
        self._live_run = self._session.open()
        self.thread = threading.get_ident()
        self._branch = self._session.branch()
        self._position = Position(self, None, self._branch, account=self._live_run.fold.named_account)
        self._before = CURRENT.get()
        self._token = CURRENT.set(self._position)
        self._meet_running_loop()
        interrupt.entered(self)

    def _give_up(self, error: BaseException) -> None:
        """End a run whose block was not entered, as far as it is on record."""
        if self._live_run is None:
            self._session.give_up(error)
        else:
            self._session.close(self._live_run, error)

    @covered
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            stop = self._leave(error)
        except AgentGuardError:
            raise
        except BaseException:  # of a signal handler: what it has cut short is done all the same
            self._cut_short(functools.partial(self._leave, error))
            raise
        raise_on_exit(stop, error)

    def _leave(self, error: BaseException | None) -> RunStopped | None:
        """End the run, and return the stop to raise."""
        interrupt.leaving(self)
        if self._token is None:  # closed before, perhaps without its end on record
            return self._close_again(error)
        token, self._token = self._token, None
        if not restore_position(token, self):
            self._entered_elsewhere = token
        self._skip_what_was_left()
        return self._session.close(self.live_run, error)

    def _close_again(self, error: BaseException | None) -> RunStopped | None:
        if self._live_run is None and error is not None:  # it could not be opened, as that says
            return None
        live_run = self.live_run
        again = live_run.owner and not live_run.log.read_again().state.final
        return self._session.close(live_run, error) if again else self.stop

    def _cut_short(self, close: Callable[[], object]) -> None:
        """Close a run whose block a signal handler has cut short, and make current what was so before."""
        with contextlib.suppress(AgentGuardError):
            finish(close)
        self._token = None
        if (position := CURRENT.get()) is not None and position.run is self:
            CURRENT.set(self._before)

    def _skip_what_was_left(self) -> None:
        """Make current what was so before runs that were left out of order."""
        position = CURRENT.get()
        while position is not None and isinstance(position.run, Run) and position.run._is_left:
            position = position.run._before
            CURRENT.set(position)

    def leave_context(self) -> bool:
        """Make current what was so before the run, if it was entered here and left in another context.

        Not in a copy of the context, as a task has it: what goes on there is told that the run is over.
        """
        if self._entered_elsewhere is None:
            return False
        try:
            CURRENT.reset(self._entered_elsewhere)
        except ValueError:
            return False
        self._entered_elsewhere = None
        self._skip_what_was_left()
        return True

    @property
    def _is_left(self) -> bool:
        return self._live_run is not None and self._token is None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    @at_its_call(__exit__)
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._drained()
            self.__exit__(kind, error, traceback)
        except BaseException as cut:  # a cancellation, or of a signal handler
            if self._token is not None:
                self.__exit__(type(cut), cut, None)
            raise

    async def _drained(self) -> None:
        """Return when a drain of this run is over, if one is under way."""
        draining = self.live_run.draining
        if draining is not None and draining.run_id == self.id:
            while not draining.over.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(_MOMENT)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Use as a decorator: each call of `fn` is a run of its own, its arguments the run's inputs."""
        again = self._again
        if again is None:
            raise TypeError("only guard.run(...) is a decorator")
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError("a run cannot decorate a generator function; open it in the body instead")
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                async with again({"args": list(args), "kwargs": kwargs}) as opened:
                    return check_followed(await fn(*args, **kwargs), opened.name)

            vars(run_async)[DECORATED] = self
            return run_async

        @functools.wraps(fn)
        def run_sync(*args: Any, **kwargs: Any) -> Any:
            opened = again({"args": list(args), "kwargs": kwargs})
            with contextlib.ExitStack() as stack:
                stack.push(opened)
                opened.__enter__()
                result = check_followed(fn(*args, **kwargs), opened.name)
                if not inspect.isawaitable(result):
                    return result
                stack.pop_all()
            opened._step_out()
            return opened._awaited(result)

        vars(run_sync)[DECORATED] = self
        return run_sync

    def _step_out(self) -> None:
        """Leave the context in which the run was entered; it goes on elsewhere."""
        token, self._token = self._token, None
        if token is not None:
            restore_position(token, self)
        self._skip_what_was_left()

    async def _awaited(self, result: Awaitable[Any]) -> Any:
        """Go on with the run where what its function returned is awaited, and end it there."""
        self._token = CURRENT.set(self._position)
        self._meet_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(self)
            return check_followed(await result, self.name)

    def close(self) -> None:
        """End a run that `guard.start` opened; raises its stop, like leaving a block."""
        self.__exit__(None, None, None)

    async def aclose(self) -> None:
        """The async form of `close`."""
        await self.__aexit__(None, None, None)

    def _meet_running_loop(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._position is not None:
            self.install_task_factory(loop, self._position.branch, early=False)

    def install_task_factory(
        self, loop: asyncio.AbstractEventLoop, branch: Branch, *, early: bool = True
    ) -> None:
        """Give tasks made in this loop branches of their own."""
        live_run = self.live_run
        in_flight = live_run.in_flight
        if loop not in in_flight.loops:
            in_flight.loops[loop] = tasks.install_task_factory(loop, id(live_run))
            if live_run.player is not None:
                live_run.player.watch_loop(loop, early=early)
            if early:
                if branch.tasks is None:
                    branch.tasks = tasks.EarlyTasks()
                in_flight.loops[loop].count(branch.tasks.add(branch, loop), in_flight)
        in_flight.latest_loop = weakref.ref(loop)

    # --- steps ---------------------------------------------------------------------------------

    def here(self) -> InRun:
        """Return the place of the code that runs now, in this run."""
        position = CURRENT.get()
        if position is not None and position.run is self:
            tasks.ensure_task_factory(position)
            branch = position.branch.here()
            return position if branch is position.branch else on_branch(position, branch)
        if self._position is None:
            raise NoActiveRunError(f"run {self.id} has not been entered: use `with guard.run(...) as run:`")
        return self._position

    def call(self, name: str, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run `fn(*args, **kwargs)` as a guarded step; awaitable for a coroutine function.

        The options of `guarded_step` go to the step (`kind=`, `reserve=`, `usage=`, ...), all other
        keywords to `fn`.  `branch="a/b"` puts the step into a branch of that path below the run's own,
        for code that knows its place in a tree better than the context does; a branch that
        `run.branch(...)` gave does too.
        """
        return call.call(self._at(options.pop("branch", None)), name, fn, args, options)

    def apply(
        self,
        name: str,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        branch: str | Branch | None = None,
        **options: Any,
    ) -> Any:
        """Run a guarded step as `call` does, its arguments given apart: for integrations."""
        return call.apply(self._at(branch), name, fn, tuple(args), dict(kwargs or {}), options)

    def limits(self, *resources: str) -> bool:
        """Return whether a level that a step here is charged to limits one of these."""
        names = [NANO_USD if resource == "usd" else resource for resource in resources]
        here = self.here()
        return bool(self.live_run.levels.limited(names, here.scope_key, here.account))

    def step(self, name: str, *, branch: str | Branch | None = None, **options: Any) -> StepBlock:
        """Return a step around a block.

        It is counted, limited and logged as any step, but cannot be replayed.  Where start and end
        lie in different functions (callbacks), use `block.start()` and `block.finish(error)`, which
        leave the context alone.
        """
        return call.block(self._at(branch), name, options)

    def check(self) -> None:
        """Raise the stop of this place, if there is one: for loops that run no step, such as streams."""
        here = self.here()
        check_place(self.live_run, here.scope_key, here.branch.path)

    @property
    def replayed(self) -> bool:
        """Whether this is a replay, which carries nothing out: for integrations."""
        player = self.live_run.player
        return player is not None and not player.live

    @property
    def captures(self) -> bool:
        """Whether the guard keeps arguments and results in full: for integrations."""
        return self.live_run.components.capture == "full"

    def skip(self, done: Callable[[str], bool]) -> int:
        """In a recovery, take recorded calls as done that the program will not make again: for integrations.

        For frameworks with checkpoints of their own, which have the results of those calls.  `done` is
        asked for the branch of each call that has an outcome on record and was not made yet.  Return how many
        were taken; outside a recovery, none.
        """
        player = self.live_run.player
        return 0 if player is None else player.skip(done)

    async def shield(self, body: Awaitable[T]) -> T:
        """Await a step's body, to its end where only a refusal beside it cancels the task: for integrations.

        Frameworks that make tool calls side by side cancel the others when one is refused; those have
        their reservations.  A kill, a deadline and a caller's own cancellation cancel the body.
        """
        return await shielded(self.check, body)

    def _at(self, branch: str | Branch | None) -> Any:
        position = self.here()
        if branch is None:
            return position
        # By where the code is, so that tasks it has made are not looked for in `branch`.
        tasks.ensure_task_factory(position)
        if isinstance(branch, str):
            branches = self.live_run.branches
            path = check_branch(branch)
            branch = branches.get(path) or branches.setdefault(path, Branch(f"{MAIN}/{path}"))
        return on_branch(position, branch)

    def scope(self, name: str, budget: Budget | None = None) -> Scope:
        """Return a part of the run with a budget of its own."""
        return Scope(self, self.here(), name, budget)

    def account(self, name: str, budget: Budget) -> bound.AccountBlock:
        """Charge the steps inside to a named account too.

        As `account=` of `guard.run`, for code that learns which conversation it serves inside a run.  A
        refusal by it stops the run.

        Args:
            name: of the account, which all runs of this tenant share.
            budget: what they may use together.

        Raises:
            TypeError, ValueError: the name or the budget cannot be one, or steps here are charged to another
                account already; the message names it.
        """
        here = self.here()
        return bound.AccountBlock(here, joined(here.account, name, self.tenant, budget))

    def branch(self, name: str) -> bound.BranchBlock:
        """Return a block whose calls are numbered under a name of their own."""
        return bound.BranchBlock(self.here(), name)

    def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return `fn` for a thread, an executor or another loop, in a branch of this run."""
        return bound.bind(self.here(), fn)

    async def gather(self, *awaitables: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
        """Await several awaitables, each in a branch of its own."""
        self.install_task_factory(asyncio.get_running_loop(), self.here().branch)
        return await asyncio.gather(*awaitables, return_exceptions=return_exceptions)

    # --- recorded values -----------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the time (UTC), on record."""
        return recorded.now(self.live_run, self.here())

    def uuid(self) -> uuid_module.UUID:
        """Return a UUID that replays."""
        return recorded.seeded_uuid(self.live_run, self.here())

    def random(self) -> float:
        """Return a number in [0, 1) that replays."""
        return recorded.seeded_random(self.live_run, self.here())

    def record(self, name: str, fn: Callable[[], Any], *, branch: str | Branch | None = None) -> Any:
        """Return what `fn()` gives, on record.

        Awaitable for a coroutine function.
        """
        return recorded.record(self.live_run, self._at(branch), check_id(name, "name"), fn)

    # --- control -------------------------------------------------------------------------------

    def kill(self, reason: str, actor: str | None = None) -> int:
        """Stop this run, in every process; return the kill's generation."""
        return self._session.kill(reason, actor)

    def pause(self, reason: str = "") -> None:
        """Admit no further step until `resume`; bodies in flight finish.  Durable."""
        self._session.pause(reason)

    def resume(self) -> None:
        """Lift a pause."""
        self._session.resume()

    def set_budget(
        self,
        budget: BudgetChange,
        *,
        actor: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Give the run another budget from now on, in every process; on record as `run_budget_set`.

        The new budget takes the place of the whole old one, and what was spent and reserved counts
        against it: where a limit is met already, the next step that would use more is refused and stops
        the run.  Calls and repeats that were not limited before count from now on.

        Args:
            budget: all limits of the run (`Budget()` has none), or those that change, by name: `{"usd": 5}`
                leaves the others as they are then, and `{"usd": None}` lifts one.
            actor: who says so; by default `user@host`.
            reason: why.

        Raises:
            TypeError, ValueError: it is no Budget and no limits by name.
            AgentGuardError: the run has ended.

        Example:
            >>> from agentguard import Budget, Guard
            >>> with Guard.in_memory() as guard, guard.run("r", budget=Budget(steps=1)) as run:
            ...     first = run.call("a", int)
            ...     run.set_budget(Budget(steps=3))
            ...     second = run.call("b", int)
            ...     run.remaining.steps
            1
        """
        self._session.set_budget(budget, actor, reason)

    def drain(self, timeout: float | None = None) -> bool:
        """Let go of the run, so that another process can carry it on: for a worker that is told to leave.

        No further step of the run begins in this process.  Those in flight may finish, and what is called
        in them, for `timeout` seconds (None: as long as they take).  Then the run has no owner: it is
        RUNNING, nothing says that it stopped, and `guard.recover` claims it at once, anywhere.  This process
        writes nothing more to it; async bodies still in flight are cancelled, and on record they stay in
        flight.  The agent's next step, and the end of its block, raise `RunStopped`.

        Call it between steps, or in a thread of its own, never in the handler of a signal itself.

        Returns:
            Whether every step in flight finished.  True as well where the run had ended already.

        Raises:
            AgentGuardError: the run is nested (drain the outermost), attached to, replayed, or this is one
                of its own steps.
            StoreUnavailableError: the store cannot be told; nothing more is written to the run all the same.

        Example:
            >>> from agentguard import Guard, RunStopped, guarded_step
            >>> @guarded_step
            ... def work(n: int) -> int:
            ...     return n
            >>> def agent() -> int:
            ...     return work(1) + work(2)
            >>> guard = Guard.in_memory()
            >>> try:
            ...     with guard.run("job", run_id="job") as run:
            ...         first = work(1)
            ...         finished = run.drain(timeout=10)
            ...         work(2)
            ... except RunStopped:
            ...     print(finished, guard.summary("job").state)
            True RUNNING
            >>> with guard.recover("job") as run:
            ...     agent()
            3
        """
        return self._session.drain(self.live_run, timeout)

    async def adrain(self, timeout: float | None = None) -> bool:
        """The async form of `drain`: it waits without blocking the event loop."""
        return await self._session.adrain(self.live_run, timeout)

    def __repr__(self) -> str:
        return f"<Run {self.name} {self.id} {self.state}>"
