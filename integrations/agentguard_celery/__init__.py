"""Celery: a task is a run, and one that is delivered again is carried on instead of repeated.

Example:
    >>> from celery import Celery
    >>> from agentguard import Budget, Guard, guarded_step
    >>> from agentguard_celery import GuardedTask
    >>> app, guard = Celery("office", broker="memory://"), Guard.in_memory()
    >>> @guarded_step
    ... def look_up(customer: str) -> str:
    ...     return customer.upper()
    >>> @app.task(base=GuardedTask, guard=guard, budget=Budget(steps=5))
    ... def answer(customer: str) -> str:
    ...     return look_up(customer)
    >>> answer("ann"), [run.name for run in guard.runs()]
    ('ANN', ['answer'])
"""

from agentguard_celery.task import GuardedTask

__all__ = ["GuardedTask"]
