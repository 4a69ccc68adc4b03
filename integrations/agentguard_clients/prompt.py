"""About how many tokens a request's prompt is."""

from __future__ import annotations

import re
from typing import Any

from agentguard.cost.usage import MEDIA_TOKENS, estimated_tokens

#: A request that names none of these holds text alone, and its own size is the estimate.
_MEDIA = re.compile(rb'"(?:input_|output_)?(?:image|image_url|audio|file|document|video|video_url)"')
_TYPES = frozenset(
    {"image", "image_url", "input_image", "input_audio", "file", "input_file", "document", "video"}
)


def prompt_tokens(content: bytes, body: dict[str, Any]) -> int:
    """Return an estimate, on the high side, of the prompt in a request.

    Example:
        >>> prompt_tokens(b'{"input": "How many tokens is this?"}', {})
        13
    """
    if _MEDIA.search(content) is None:
        return estimated_tokens(content)
    size, media = _weighed(body)
    return -(-size // 3) + media * MEDIA_TOKENS


def _weighed(value: Any) -> tuple[int, int]:
    """Return the bytes of text in a request, and the number of images and other files beside it."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace")) + 1, 0
    if isinstance(value, dict):
        if value.get("type") in _TYPES:
            return 0, 1
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list):
        return 6, 0
    weights = [_weighed(item) for item in value]
    return sum(size for size, _ in weights), sum(media for _, media in weights)
