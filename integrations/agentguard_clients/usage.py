"""What a provider counted, as `Usage`."""

from __future__ import annotations

from typing import Any

from agentguard import Usage


def tokens_of(usage: Any) -> Usage | None:
    """Return the tokens of a provider's `usage` object, or None where it counted nothing."""
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens")) or 0
    if prompt is None:
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("cache_read_input_tokens") or 0
    if "cache_read_input_tokens" in usage:
        prompt += cached + (usage.get("cache_creation_input_tokens") or 0)
    return Usage(input_tokens=prompt, output_tokens=output, cached_tokens=min(cached, prompt))
