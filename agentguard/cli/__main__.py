"""`python -m agentguard.cli`, for where the command itself is not on the PATH."""

import sys

from agentguard.cli import main

if __name__ == "__main__":
    sys.exit(main())
