"""Running an agent again on its log: replay, recovery, forks, and where two logs or a program differ."""

#: How long, in seconds, a program may come to no call before it counts as stalled, where nobody says.
STALL_TIMEOUT = 5.0
