"""Running an agent again on its log: replay, recovery, forks, and where two logs or a program differ."""
