"""How many tokens what is no text in a prompt is taken for, on the high side of what is usual."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from agentguard.cost.usage import MEDIA_TOKENS

#: A part of a prompt that is no text, as the APIs write it.
Media = Mapping[str, Any]

#: The most that one image is, where a model takes more for it than `MEDIA_TOKENS`; the first that fits.
#: https://developers.openai.com/api/docs/guides/images-vision and
#: https://platform.claude.com/docs/en/build-with-claude/vision
_IMAGE_TOKENS: Final = (
    (re.compile(r"gpt-4o-mini"), 2833 + 8 * 5667),
    (re.compile(r"gpt-.*(mini|nano)|o4-mini|gpt-5\.[4-9]|gpt-[6-9]"), 3780),
    (re.compile(r"claude-(opus-4-[78]|[a-z]+-5|[a-z]+-[6-9])"), 4784),
)
#: The most where an image is looked at as it is (`detail="original"`): 10,000 patches at 1.2 tokens.
_ORIGINAL_TOKENS: Final = 12_000
#: A page of a PDF has its text, and its image beside it.
#: https://platform.claude.com/docs/en/build-with-claude/pdf-support#estimate-your-costs
_PAGE_TOKENS: Final = 3_000
_PAGE: Final = re.compile(rb"/Type\s*/Page(?!s)")
#: Bytes of a page where its pages are not to be seen, and of a second of speech by its format.
_PAGE_BYTES: Final = 20_000
_SECOND_BYTES: Final = {"wav": 32_000, "pcm16": 32_000}
_COMPRESSED_SECOND_BYTES: Final = 4_000
#: Files in words.
_WORDS: Final = re.compile(r"data:(text/|application/(json|xml|csv|x-ndjson))")


def media_tokens(model: str | None, part: Media) -> int:
    """Return how many tokens an image, a sound or a file of a prompt is taken for.

    Args:
        model: who reads it.
        part: the part of the prompt; what is not in it, but at an address, is taken for `MEDIA_TOKENS`.
    """
    model = model or ""
    if (sound := _inside(part, "input_audio")) is not None:
        second = _SECOND_BYTES.get(str(sound.get("format")), _COMPRESSED_SECOND_BYTES)
        size = len(str(sound.get("data") or "")) * 3 // 4
        return (size // second + 1) * (32 if "gemini" in model else 10)
    if (file := file_data(part)) is not None and "pdf" in file[:30]:
        return _pages(file) * (_PAGE_TOKENS + _of_image(model, part))
    return _of_image(model, part)


def file_data(part: Media) -> str | None:
    """Return a file that is in a part, as a data URL, or None."""
    found = (_inside(part, "file") or part).get("file_data")
    if isinstance(found, str):
        return found
    source = _inside(part, "source") or {}
    data, kind = source.get("data"), source.get("media_type")
    return f"data:{kind};base64,{data}" if isinstance(data, str) and kind == "application/pdf" else None


def is_words(file: str) -> bool:
    """Return whether a file, as a data URL, is text."""
    return _WORDS.match(file) is not None


def _inside(part: Media, name: str) -> Media | None:
    found = part.get(name)
    return found if isinstance(found, Mapping) else None


def _of_image(model: str, part: Media) -> int:
    detail = (_inside(part, "image_url") or part).get("detail")
    if detail == "original":
        return _ORIGINAL_TOKENS
    if detail == "low" and "gpt-4o-mini" in model:
        return 2833
    return next((most for name, most in _IMAGE_TOKENS if name.search(model)), MEDIA_TOKENS)


def _pages(file: str) -> int:
    data = file.partition(",")[2]
    try:
        seen = len(_PAGE.findall(base64.b64decode(data)))
    except ValueError:
        seen = 0
    return seen or len(data) * 3 // 4 // _PAGE_BYTES + 1
