"""The guard's errors in a form that an SDK hands on from inside a request, with the same facts."""

from __future__ import annotations

from agentguard import AgentGuardError


def let_through(error: AgentGuardError, through: type[Exception]) -> AgentGuardError:
    """Return the error as one of the SDK's own as well.

    An SDK takes whatever its HTTP client raises for a broken connection, and tries again; errors of its
    own it does not touch.
    """
    form = _form(type(error), through)
    same = form.__new__(form, *error.args)
    same.args = error.args
    vars(same).update(vars(error))
    return same.with_traceback(error.__traceback__)


#: The forms by the class of the error and that of the SDK.
_FORMS: dict[tuple[type, type], type[AgentGuardError]] = {}


def _form(cls: type[AgentGuardError], through: type[Exception]) -> type[AgentGuardError]:
    form = _FORMS.get((cls, through))
    if form is None:
        facts = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        form = _FORMS[cls, through] = type(cls.__name__, (cls, through), facts)
    return form
