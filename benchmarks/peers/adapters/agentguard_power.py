"""agentguard on SQLite with `durability="power"`: each step is on the disk before the next one."""

import functools

from adapters import agentguard_durable

REQUIRES = "."
SAYS = {"after each step": "fsynced: survives power loss"}
engine = functools.partial(agentguard_durable.engine, durability="power")
killer = agentguard_durable.killer
