"""What counts as a secret, and how it is masked: pure text, no payloads here.

`names` knows a secret by the name of its field, `shapes` by what it looks like, `masking` takes both out of
a text, and `search` finds out fast that there is nothing to take out.  `urls` reads the URLs of servers.
"""

from __future__ import annotations

from typing import Final

#: What stands in the place of a secret.
MASK: Final = "**********"
