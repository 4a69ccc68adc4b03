"""What counts as a secret, and how it is masked: pure text, no payloads here.

`names` knows a secret by the name of its field, `shapes` by what it looks like, `masking` takes both out of
a text, and `search` finds out fast that there is nothing to take out.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

#: What stands in the place of a secret.
MASK: Final = "**********"


def public_url(url: str) -> str:
    """Return a URL without user, password and options, of which `prefix` alone is nobody's secret."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    options = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] == "prefix"])
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"{shown}?{options}" if options else shown
