"""Usage objects of providers, in their documented shapes, and what each call costs by the published prices.

A bill is worked out by hand: (count, USD for a million) for tokens, and USD for the rest.  The prices are those
that each source published for the day of the call.

`python -m tests.unit.provider_bills` prints the table: what is right, and what is booked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from agentguard import Usage
from agentguard.cost import ModelCosts, ModelPrices, ModelRequest, model_usage

OPENAI = "https://developers.openai.com/api/docs/pricing"
ANTHROPIC = "https://platform.claude.com/docs/en/about-claude/pricing"
GOOGLE = "https://ai.google.dev/gemini-api/docs/pricing"
MISTRAL = "https://mistral.ai/pricing/api"
GROQ = "https://groq.com/pricing"
DEEPSEEK = "https://api-docs.deepseek.com/quick_start/pricing"
BEDROCK = "https://aws.amazon.com/bedrock/pricing/"
OPENROUTER = "https://openrouter.ai/docs/use-cases/usage-accounting"
COMPACTION = "https://platform.claude.com/docs/en/build-with-claude/compaction"
ADVISOR = "https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool"
FALLBACK = "https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback"
IMAGE_2_6 = "https://developers.openai.com/api/docs/models/gpt-image-2.6-sunburst"
MOONSHOT = "https://platform.moonshot.ai/docs/pricing/chat"
XAI = "https://docs.x.ai/developers/models"
PERPLEXITY = "https://docs.perplexity.ai/getting-started/pricing"
NOON: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass
class Bill:
    """One call: who answered what, and what it costs."""

    id: str
    provider: str
    model: str
    answer: Any
    tokens: list[tuple[int, str]] = field(default_factory=list)
    source: str = ""
    usd: str = "0"
    at: datetime = NOON
    terms: dict[str, str] = field(default_factory=dict)
    times: str = "1"
    #: Whether the price is published for just this; else it is a bound, and the booked figure not below.
    exact: bool = True

    @property
    def amount(self) -> Decimal:
        """What the provider charges, in USD."""
        tokens = sum((Decimal(n) * Decimal(price) for n, price in self.tokens), Decimal(0))
        return tokens * Decimal(self.times) / 1_000_000 + Decimal(self.usd)


def chat(model: str, given: int, made: int, **more: Any) -> dict[str, Any]:
    """As OpenAI's Chat Completions answer, and all who speak its language."""
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    outer = {name: more.pop(name) for name in ("service_tier", "x_groq") if name in more}
    return {"id": "c", "object": "chat.completion", "model": model, "usage": usage | more, **outer}


def response(model: str, given: int, made: int, **more: Any) -> dict[str, Any]:
    """As OpenAI's Responses answer."""
    usage = {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": more.pop("cached", 0), **more.pop("details", {})},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": more.pop("reasoning", 0)},
        "total_tokens": given + made,
    }
    return {"id": "r", "object": "response", "model": model, "output": [], "usage": usage, **more}


def message(model: str, given: int, made: int, **more: Any) -> dict[str, Any]:
    """As Anthropic's Messages answer."""
    usage = {
        "input_tokens": given,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": made,
        "service_tier": "standard",
    }
    return {"id": "m", "type": "message", "role": "assistant", "model": model, "usage": usage | more}


def content(model: str, given: int, made: int, **more: Any) -> dict[str, Any]:
    """As Gemini's generateContent answers."""
    usage = {"promptTokenCount": given, "candidatesTokenCount": made, **more}
    parts = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")
    usage["totalTokenCount"] = sum(usage.get(name, 0) for name in parts)
    return {"candidates": [], "modelVersion": model, "usageMetadata": usage}


def converse(given: int, made: int, **more: Any) -> dict[str, Any]:
    """As Bedrock's Converse answers; it does not name the model."""
    outer = {name: more.pop(name) for name in ("serviceTier", "performanceConfig") if name in more}
    usage = {"inputTokens": given, "outputTokens": made, **more}
    total = sum(usage.get(name, 0) for name in ("inputTokens", "outputTokens", "cacheReadInputTokens"))
    return {"stopReason": "end_turn", "usage": usage | {"totalTokens": total}, **outer}


def by_modality(**counts: int) -> list[dict[str, Any]]:
    """Gemini's details: text, audio, image and video."""
    return [{"modality": name.upper(), "tokenCount": n} for name, n in counts.items()]


def searches(*actions: str) -> list[dict[str, Any]]:
    """Web searches among the items of a response."""
    return [{"type": "web_search_call", "id": "ws", "action": {"type": action}} for action in actions]


def turn(kind: str, given: int, made: int, **more: Any) -> dict[str, Any]:
    """One of the times that Claude sampled for a call."""
    usage = {"input_tokens": given, "output_tokens": made, "type": kind}
    return usage | {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0} | more


def drawing(**told: Any) -> dict[str, Any]:
    """What a response with an image says beside its usage."""
    item = {"type": "image_generation_call", "id": "ig", "status": "completed"}
    return {"output": [item], "tools": [{"type": "image_generation", **told.pop("tool", {})}], **told}


def ran(*containers: str, memory: str | None = None) -> dict[str, Any]:
    """A response whose code ran in containers."""
    items = [{"type": "code_interpreter_call", "id": "ci", "container_id": name} for name in containers]
    container = {"type": "auto", "file_ids": []} | ({"memory_limit": memory} if memory else {})
    return {"output": items, "tools": [{"type": "code_interpreter", "container": container}]}


IMAGE_USAGE = {
    "input_tokens": 150,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 100},
    "output_tokens": 4_160,
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 4_160},
    "total_tokens": 4_310,
}

BILLS: Final = [
    # --- OpenAI, Chat Completions
    Bill(
        "openai-chat",
        "openai",
        "gpt-5",
        chat("gpt-5-2025-08-07", 1_000, 200),
        [(1_000, "1.25"), (200, "10")],
        OPENAI,
    ),
    Bill(
        "openai-cached-and-reasoning",
        "openai",
        "gpt-5",
        chat(
            "gpt-5-2025-08-07",
            10_000,
            900,
            prompt_tokens_details={"cached_tokens": 8_000, "audio_tokens": 0},
            completion_tokens_details={"reasoning_tokens": 700, "accepted_prediction_tokens": 0},
        ),
        [(2_000, "1.25"), (8_000, "0.125"), (900, "10")],
        OPENAI,
    ),
    Bill(
        "openai-none-fields",
        "openai",
        "gpt-4o",
        chat("gpt-4o-2024-08-06", 500, 50, prompt_tokens_details=None, completion_tokens_details=None),
        [(500, "2.5"), (50, "10")],
        OPENAI,
    ),
    Bill(
        "openai-flex",
        "openai",
        "gpt-5",
        chat("gpt-5", 1_000, 200, service_tier="flex", prompt_tokens_details={"cached_tokens": 600}),
        [(400, "0.625"), (600, "0.0625"), (200, "5")],
        OPENAI,
    ),
    Bill(
        "openai-priority",
        "openai",
        "gpt-4.1",
        chat("gpt-4.1-2025-04-14", 1_000, 200, service_tier="priority"),
        [(1_000, "3.5"), (200, "14")],
        OPENAI,
    ),
    Bill(
        "openai-priority-cached",
        "openai",
        "gpt-5",
        chat("gpt-5", 1_000, 200, service_tier="priority", prompt_tokens_details={"cached_tokens": 600}),
        [(400, "2.5"), (600, "0.25"), (200, "20")],
        OPENAI,
    ),
    Bill(
        "openai-priority-of-a-model-without-a-rate-for-it",
        "openai",
        "gpt-4",
        chat("gpt-4", 1_000, 200, service_tier="priority"),
        [(1_000, "30"), (200, "60")],
        OPENAI,
        exact=False,
    ),
    Bill(
        "openai-default-tier",
        "openai",
        "gpt-5",
        chat("gpt-5", 1_000, 200, service_tier="default"),
        [(1_000, "1.25"), (200, "10")],
        OPENAI,
    ),
    Bill(
        "openai-batch",
        "openai",
        "gpt-5",
        chat("gpt-5", 1_000, 200),
        [(1_000, "0.625"), (200, "5")],
        OPENAI,
        terms={"processing": "batch"},
    ),
    Bill(
        "openai-audio",
        "openai",
        "gpt-audio",
        chat(
            "gpt-audio-2025-08-28",
            17,
            592,
            prompt_tokens_details={"audio_tokens": 0, "cached_tokens": 0},
            completion_tokens_details={"audio_tokens": 482, "reasoning_tokens": 0},
        ),
        [(17, "2.5"), (110, "10"), (482, "64")],
        OPENAI,
    ),
    Bill(
        "openai-audio-in-and-out",
        "openai",
        "gpt-audio",
        chat(
            "gpt-audio",
            300,
            100,
            prompt_tokens_details={"audio_tokens": 250},
            completion_tokens_details={"audio_tokens": 80},
        ),
        [(50, "2.5"), (250, "32"), (20, "10"), (80, "64")],
        OPENAI,
    ),
    Bill(
        "openai-price-that-changed-before",
        "openai",
        "o3",
        chat("o3-2025-04-16", 1_000, 100),
        [(1_000, "10"), (100, "40")],
        OPENAI,
        at=datetime(2025, 6, 1, tzinfo=UTC),
    ),
    Bill(
        "openai-price-that-changed-after",
        "openai",
        "o3",
        chat("o3-2025-04-16", 1_000, 100),
        [(1_000, "2"), (100, "8")],
        OPENAI,
    ),
    Bill(
        "openai-cache-writes",
        "openai",
        "gpt-6-sol",
        chat(
            "gpt-6-sol",
            20_000,
            100,
            prompt_tokens_details={"cached_tokens": 5_000, "cache_write_tokens": 10_000},
        ),
        [(5_000, "2"), (5_000, "0.2"), (10_000, "2.5"), (100, "10")],
        OPENAI,
    ),
    Bill(
        "openai-long-context",
        "openai",
        "gpt-6-sol",
        chat("gpt-6-sol", 300_000, 1_000),
        [(300_000, "4"), (1_000, "15")],
        OPENAI,
    ),
    Bill(
        "openai-embeddings",
        "openai",
        "text-embedding-3-small",
        {
            "object": "list",
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        [(8, "0.02")],
        OPENAI,
    ),
    Bill(
        "openai-zero",
        "openai",
        "gpt-5",
        chat("gpt-5", 0, 0),
        [],
        OPENAI,
    ),
    Bill(
        "openai-unknown-fields",
        "openai",
        "gpt-5",
        chat(
            "gpt-5", 10, 20, wizard_tokens=5, prompt_tokens_details={"novel_tokens": 3, "cached_tokens": None}
        ),
        [(10, "1.25"), (20, "10")],
        OPENAI,
    ),
    # --- OpenAI, Responses and images
    Bill(
        "openai-responses",
        "openai",
        "gpt-5",
        response("gpt-5-2025-08-07", 5_000, 800, cached=4_000, reasoning=640),
        [(1_000, "1.25"), (4_000, "0.125"), (800, "10")],
        OPENAI,
    ),
    Bill(
        "openai-responses-flex",
        "openai",
        "o3",
        response("o3", 1_000, 100, service_tier="flex", cached=100),
        [(900, "1"), (100, "0.25"), (100, "4")],
        OPENAI,
    ),
    Bill(
        "openai-responses-web-search",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, output=searches("search", "open_page", "search")),
        [(1_000, "1.25"), (100, "10")],
        OPENAI,
        usd="0.02",
    ),
    Bill(
        "openai-responses-completed-event",
        "openai",
        "gpt-5",
        {"type": "response.completed", "response": response("gpt-5", 100, 10)},
        [(100, "1.25"), (10, "10")],
        OPENAI,
    ),
    Bill(
        "openai-images",
        "openai",
        "gpt-image-1.5",
        {
            "model": "gpt-image-1.5",
            "usage": {
                "input_tokens": 150,
                "input_tokens_details": {"text_tokens": 50, "image_tokens": 100},
                "output_tokens": 4_160,
                "output_tokens_details": {"text_tokens": 0, "image_tokens": 4_160},
                "total_tokens": 4_310,
            },
        },
        [(50, "5"), (100, "8"), (4_160, "32")],
        OPENAI,
    ),
    Bill(
        "openai-responses-web-search-told",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, tool_usage={"web_search": {"num_requests": 3}}),
        [(1_000, "1.25"), (100, "10")],
        OPENAI,
        usd="0.03",
    ),
    Bill(
        "openai-responses-web-search-of-a-model-without-a-rate-for-it",
        "openai",
        "o3-pro",
        response("o3-pro", 1_000, 100, output=searches("search")),
        [(1_000, "20"), (100, "80")],
        OPENAI,
        usd="0.01",
    ),
    Bill(
        "openai-responses-web-search-preview",
        "openai",
        "gpt-4.1",
        response("gpt-4.1", 1_000, 100, output=searches("search"), tools=[{"type": "web_search_preview"}]),
        [(1_000, "2"), (100, "8")],
        OPENAI,
        usd="0.025",
    ),
    Bill(
        "openai-responses-web-search-preview-of-a-model-that-reasons",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, output=searches("search"), tools=[{"type": "web_search_preview"}]),
        [(1_000, "1.25"), (100, "10")],
        OPENAI,
        usd="0.01",
    ),
    Bill(
        "openai-responses-web-search-with-its-block-of-input",
        "openai",
        "gpt-4.1-mini",
        response("gpt-4.1-mini", 1_000, 100, output=searches("search"), tools=[{"type": "web_search"}]),
        [(9_000, "0.4"), (100, "1.6")],
        OPENAI,
        usd="0.01",
    ),
    Bill(
        "openai-chat-that-searches",
        "openai",
        "gpt-5-search-api",
        chat("gpt-5-search-api-2025-10-14", 100, 200) | {"choices": []},
        [(100, "1.25"), (200, "10")],
        OPENAI,
        usd="0.01",
    ),
    Bill(
        "openai-chat-that-searches-preview",
        "openai",
        "gpt-4o-search-preview",
        chat("gpt-4o-search-preview-2025-03-11", 100, 200) | {"choices": []},
        [(100, "2.5"), (200, "10")],
        OPENAI,
        usd="0.025",
    ),
    Bill(
        "openai-responses-image",
        "openai",
        "gpt-5",
        response(
            "gpt-5",
            1_000,
            100,
            **drawing(tool={"model": "gpt-image-1.5"}, tool_usage={"image_gen": IMAGE_USAGE}),
        ),
        [(1_000, "1.25"), (100, "10"), (50, "5"), (100, "8"), (4_160, "32")],
        OPENAI,
    ),
    Bill(
        "openai-responses-image-of-the-default-model",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, **drawing(tool_usage={"image_gen": IMAGE_USAGE})),
        [(1_000, "1.25"), (100, "10"), (50, "5"), (100, "8"), (4_160, "30")],
        IMAGE_2_6,
    ),
    Bill(
        "openai-responses-image-that-tells-no-usage",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, **drawing(tool={"model": "gpt-image-1.5"})),
        [(1_000, "1.25"), (100, "10"), (4_160, "32")],
        OPENAI,
        exact=False,
    ),
    Bill(
        "openai-responses-code",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, **ran("cntr_1", "cntr_1", "cntr_2")),
        [(1_000, "1.25"), (100, "10")],
        OPENAI,
        usd="0.06",
        exact=False,  # the most: 20 minutes of what is billed by the minute
    ),
    Bill(
        "openai-responses-code-with-more-memory",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100, **ran("cntr_1", memory="16g")),
        [(1_000, "1.25"), (100, "10")],
        OPENAI,
        usd="0.48",
        exact=False,  # the most: 20 minutes of what is billed by the minute
    ),
    Bill(
        "openai-in-one-region",
        "openai",
        "gpt-5.4",
        response("gpt-5.4", 1_000, 100, output=searches("search")),
        [(1_000, "2.5"), (100, "15")],
        OPENAI,
        usd="0.01",
        times="1.1",
        terms={"endpoint": "regional"},
    ),
    Bill(
        "openai-in-one-region-of-a-model-of-before",
        "openai",
        "gpt-5",
        response("gpt-5", 1_000, 100),
        [(1_000, "1.25"), (100, "10")],
        OPENAI,
        terms={"endpoint": "regional"},
    ),
    # --- Anthropic
    Bill(
        "anthropic-compaction",
        "anthropic",
        "claude-opus-4-6",
        message(
            "claude-opus-4-6",
            23_000,
            1_000,
            iterations=[turn("compaction", 180_000, 3_500), turn("message", 23_000, 1_000)],
        ),
        [(203_000, "5"), (4_500, "25")],
        COMPACTION,
    ),
    Bill(
        "anthropic-advisor",
        "anthropic",
        "claude-haiku-4-5",
        message(
            "claude-haiku-4-5-20251001",
            412,
            531,
            iterations=[
                turn("message", 412, 89),
                turn("advisor_message", 823, 1_612, model="claude-opus-4-6"),
                turn("message", 1_348, 442),
            ],
        ),
        [(1_760, "1"), (531, "5"), (823, "5"), (1_612, "25")],
        ADVISOR,
    ),
    Bill(
        "anthropic-advisor-in-an-event",
        "anthropic",
        "claude-haiku-4-5",
        [
            {"type": "message_start", "message": message("claude-haiku-4-5-20251001", 412, 1)},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {
                    "input_tokens": 412,
                    "output_tokens": 531,
                    "iterations": [
                        turn("message", 412, 89),
                        turn("advisor_message", 823, 1_612, model="claude-opus-4-6"),
                        turn("message", 1_348, 442),
                    ],
                },
            },
        ],
        [(1_760, "1"), (531, "5"), (823, "5"), (1_612, "25")],
        ADVISOR,
    ),
    Bill(
        "anthropic-turns-that-are-short-each",
        "anthropic",
        "claude-haiku-5-5",
        message(
            "claude-haiku-5-5",
            120_000,
            100,
            server_tool_use={"web_search_requests": 1},
            iterations=[turn("message", 50_000, 40), turn("message", 70_000, 60)],
        ),
        [(120_000, "0.1"), (100, "0.5")],
        ANTHROPIC,
        usd="0.01",
    ),
    Bill(
        "anthropic-fallback",
        "anthropic",
        "claude-fable-5",
        message(
            "claude-opus-4-8",
            1_000,
            100,
            iterations=[
                turn("message", 1_000, 0, model="claude-fable-5"),
                turn("fallback_message", 1_000, 100, model="claude-opus-4-8"),
            ],
        ),
        [(1_000, "5"), (100, "25")],
        FALLBACK,
    ),
    Bill(
        "anthropic-on-vertex-in-one-region",
        "anthropic",
        "claude-opus-4-8",
        message("claude-opus-4-8", 1_000, 100),
        [(1_000, "5"), (100, "25")],
        ANTHROPIC,
        times="1.1",
        terms={"endpoint": "regional"},
    ),
    Bill(
        "anthropic-on-vertex-in-one-region-of-a-model-of-before",
        "anthropic",
        "claude-opus-4-1",
        message("claude-opus-4-1-20250805", 1_000, 100),
        [(1_000, "15"), (100, "75")],
        ANTHROPIC,
        terms={"endpoint": "regional"},
    ),
    Bill(
        "anthropic",
        "anthropic",
        "claude-sonnet-4-5",
        message("claude-sonnet-4-5-20250929", 1_000, 200),
        [(1_000, "3"), (200, "15")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-cache-5-minutes",
        "anthropic",
        "claude-sonnet-4-5",
        message(
            "claude-sonnet-4-5",
            50,
            100,
            cache_creation_input_tokens=100_000,
            cache_creation={"ephemeral_5m_input_tokens": 100_000, "ephemeral_1h_input_tokens": 0},
        ),
        [(50, "3"), (100_000, "3.75"), (100, "15")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-cache-1-hour",
        "anthropic",
        "claude-sonnet-4-5",
        message(
            "claude-sonnet-4-5",
            50,
            100,
            cache_creation_input_tokens=100_000,
            cache_creation={"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100_000},
        ),
        [(50, "3"), (100_000, "6"), (100, "15")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-cache-both-and-read",
        "anthropic",
        "claude-opus-4-5",
        message(
            "claude-opus-4-5-20251101",
            10,
            20,
            cache_read_input_tokens=5_000,
            cache_creation_input_tokens=3_000,
            cache_creation={"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 2_000},
        ),
        [(10, "5"), (5_000, "0.5"), (1_000, "6.25"), (2_000, "10"), (20, "25")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-cache-without-a-breakdown",
        "anthropic",
        "claude-3-5-haiku-latest",
        message("claude-3-5-haiku-20241022", 10, 20, cache_creation_input_tokens=3_000, cache_creation=None),
        [(10, "0.8"), (3_000, "1"), (20, "4")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-batch",
        "anthropic",
        "claude-haiku-4-5",
        message("claude-haiku-4-5-20251001", 1_000, 100, service_tier="batch"),
        [(1_000, "0.5"), (100, "2.5")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-fast",
        "anthropic",
        "claude-opus-4-8",
        message("claude-opus-4-8", 1_000, 100, speed="fast"),
        [(1_000, "10"), (100, "50")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-in-the-us",
        "anthropic",
        "claude-opus-4-7",
        message("claude-opus-4-7", 1_000, 100, inference_geo="us"),
        [(1_000, "5"), (100, "25")],
        ANTHROPIC,
        times="1.1",
    ),
    Bill(
        "anthropic-in-the-us-web-search",
        "anthropic",
        "claude-opus-4-7",
        message(
            "claude-opus-4-7", 1_000, 100, inference_geo="us", server_tool_use={"web_search_requests": 3}
        ),
        [(1_000, "5"), (100, "25")],
        ANTHROPIC,
        usd="0.03",
        times="1.1",
    ),
    Bill(
        "anthropic-anywhere",
        "anthropic",
        "claude-opus-4-7",
        message("claude-opus-4-7", 1_000, 100, inference_geo="global"),
        [(1_000, "5"), (100, "25")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-web-search",
        "anthropic",
        "claude-sonnet-4-6",
        message("claude-sonnet-4-6", 1_000, 100, server_tool_use={"web_search_requests": 3}),
        [(1_000, "3"), (100, "15")],
        ANTHROPIC,
        usd="0.03",
    ),
    Bill(
        "anthropic-long-context",
        "anthropic",
        "claude-haiku-5-5",
        message("claude-haiku-5-5", 120_000, 100),
        [(120_000, "0.5"), (100, "2.5")],
        ANTHROPIC,
    ),
    Bill(
        "anthropic-long-context-of-before",
        "anthropic",
        "claude-sonnet-4-6",
        message("claude-sonnet-4-6", 250_000, 100),
        [(250_000, "6"), (100, "22.5")],
        ANTHROPIC,
        at=datetime(2026, 3, 1, tzinfo=UTC),
    ),
    Bill(
        "anthropic-stream",
        "anthropic",
        "claude-sonnet-4-5",
        [
            {"type": "message_start", "message": message("claude-sonnet-4-5", 500, 1)},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 80}},
        ],
        [(500, "3"), (80, "15")],
        ANTHROPIC,
    ),
    # --- Google
    Bill(
        "google",
        "google",
        "gemini-2.5-pro",
        content("gemini-2.5-pro", 1_000, 100, thoughtsTokenCount=400),
        [(1_000, "1.25"), (500, "10")],
        GOOGLE,
    ),
    Bill(
        "google-long-context",
        "google",
        "gemini-2.5-pro",
        content("gemini-2.5-pro", 250_000, 100),
        [(250_000, "2.5"), (100, "15")],
        GOOGLE,
    ),
    Bill(
        "google-cached",
        "google",
        "gemini-2.5-flash",
        content("gemini-2.5-flash", 1_000, 100, cachedContentTokenCount=800),
        [(200, "0.3"), (800, "0.03"), (100, "2.5")],
        GOOGLE,
    ),
    Bill(
        "google-audio",
        "google",
        "gemini-2.5-flash",
        content("gemini-2.5-flash", 1_000, 100, promptTokensDetails=by_modality(text=400, audio=600)),
        [(400, "0.3"), (600, "1"), (100, "2.5")],
        GOOGLE,
    ),
    Bill(
        "google-cached-audio",
        "google",
        "gemini-2.5-flash",
        content(
            "gemini-2.5-flash",
            1_000,
            100,
            cachedContentTokenCount=500,
            promptTokensDetails=by_modality(text=400, audio=600),
            cacheTokensDetails=by_modality(audio=500),
        ),
        [(400, "0.3"), (100, "1"), (500, "0.1"), (100, "2.5")],
        GOOGLE,
    ),
    Bill(
        "google-cached-of-nobody-says-what",
        "google",
        "gemini-2.5-flash",
        content(
            "gemini-2.5-flash",
            1_000,
            100,
            cachedContentTokenCount=300,
            promptTokensDetails=by_modality(text=400, audio=600),
        ),
        [(400, "0.3"), (300, "1"), (300, "0.1"), (100, "2.5")],
        GOOGLE,
        exact=False,
    ),
    Bill(
        "google-image",
        "google",
        "gemini-2.5-flash-image",
        content("gemini-2.5-flash-image", 100, 1_290, candidatesTokensDetails=by_modality(image=1_290)),
        [(100, "0.3"), (1_290, "30")],
        GOOGLE,
    ),
    Bill(
        "google-sdk-spelling",
        "google",
        "gemini-2.5-pro",
        {
            "model_version": "gemini-2.5-pro",
            "usage_metadata": {
                "prompt_token_count": 1_000,
                "candidates_token_count": 100,
                "thoughts_token_count": 50,
                "cached_content_token_count": None,
                "total_token_count": 1_150,
            },
        },
        [(1_000, "1.25"), (150, "10")],
        GOOGLE,
    ),
    Bill(
        "google-batch",
        "google",
        "gemini-2.5-flash",
        content("gemini-2.5-flash", 1_000, 100),
        [(1_000, "0.15"), (100, "1.25")],
        GOOGLE,
        terms={"processing": "batch"},
    ),
    Bill(
        "google-through-openais-language",
        "google",
        "gemini-2.5-pro",
        {
            "model": "gemini-2.5-pro",
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 400},
        },
        [(100, "1.25"), (300, "10")],
        GOOGLE,
    ),
    # --- Mistral
    Bill(
        "mistral",
        "mistral",
        "mistral-large-2512",
        chat("mistral-large-2512", 1_000, 200),
        [(1_000, "0.5"), (200, "1.5")],
        MISTRAL,
    ),
    Bill(
        "mistral-price-that-changed",
        "mistral",
        "ministral-8b-latest",
        chat("ministral-8b-latest", 1_000, 200),
        [(1_000, "0.1"), (200, "0.1")],
        MISTRAL,
        at=datetime(2025, 6, 1, tzinfo=UTC),
    ),
    Bill(
        "mistral-price-that-changed-since",
        "mistral",
        "ministral-8b-latest",
        chat("ministral-8b-latest", 1_000, 200),
        [(1_000, "0.15"), (200, "0.15")],
        MISTRAL,
    ),
    # --- Groq
    Bill(
        "groq",
        "groq",
        "llama-3.3-70b-versatile",
        chat("llama-3.3-70b-versatile", 1_000, 200, queue_time=0.03, prompt_time=0.01, total_time=0.2),
        [(1_000, "0.59"), (200, "0.79")],
        GROQ,
    ),
    Bill(
        "groq-cached",
        "groq",
        "openai/gpt-oss-120b",
        chat("openai/gpt-oss-120b", 1_000, 200, prompt_tokens_details={"cached_tokens": 400}),
        [(600, "0.15"), (400, "0.075"), (200, "0.6")],
        GROQ,
    ),
    Bill(
        "groq-last-chunk-of-a-stream",
        "groq",
        "llama-3.3-70b-versatile",
        {
            "object": "chat.completion.chunk",
            "model": "llama-3.3-70b-versatile",
            "x_groq": {"id": "q", "usage": chat("", 1_000, 200)["usage"]},
        },
        [(1_000, "0.59"), (200, "0.79")],
        GROQ,
    ),
    # --- DeepSeek
    Bill(
        "deepseek",
        "deepseek",
        "deepseek-v4-pro",
        chat(
            "deepseek-v4-pro",
            1_000,
            500,
            prompt_cache_hit_tokens=600,
            prompt_cache_miss_tokens=400,
            prompt_tokens_details={"cached_tokens": 600},
            completion_tokens_details={"reasoning_tokens": 300},
        ),
        [(400, "0.66"), (600, "0.022"), (500, "1.98")],
        DEEPSEEK,
    ),
    Bill(
        "deepseek-at-peak",
        "deepseek",
        "deepseek-v4-pro",
        chat("deepseek-v4-pro", 1_000, 500),
        [(1_000, "1.32"), (500, "3.96")],
        DEEPSEEK,
        at=datetime(2026, 11, 20, 2, tzinfo=UTC),
    ),
    # --- Bedrock
    Bill(
        "bedrock",
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse(1_000, 200),
        [(1_000, "0.8"), (200, "3.2")],
        BEDROCK,
    ),
    Bill(
        "bedrock-cached",
        "aws.bedrock",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        converse(50, 100, cacheReadInputTokens=1_000, cacheWriteInputTokens=0),
        [(50, "3.3"), (1_000, "0.33"), (100, "16.5")],
        BEDROCK,
    ),
    Bill(
        "bedrock-cache-1-hour",
        "bedrock",
        "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        converse(
            50,
            100,
            cacheWriteInputTokens=1_500,
            cacheDetails=[{"ttl": "1h", "inputTokens": 1_000}, {"ttl": "5m", "inputTokens": 500}],
        ),
        [(50, "3"), (1_000, "6"), (500, "3.75"), (100, "15")],
        BEDROCK,
    ),
    Bill(
        "bedrock-cache-1-hour-of-a-model-without-a-rate-for-it",
        "bedrock",
        "global.anthropic.claude-sonnet-4-20250514-v1:0",
        converse(50, 100, cacheWriteInputTokens=1_000, cacheDetails=[{"ttl": "1h", "inputTokens": 1_000}]),
        [(50, "3"), (1_000, "6"), (100, "15")],
        BEDROCK,
    ),
    Bill(
        "bedrock-priority",
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse(1_000, 200, serviceTier={"type": "priority"}),
        [(1_000, "0.8"), (200, "3.2")],
        BEDROCK,
        times="1.75",
    ),
    Bill(
        "bedrock-optimized-latency",
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse(1_000, 200, performanceConfig={"latency": "optimized"}),
        [(1_000, "1"), (200, "4")],
        BEDROCK,
    ),
    Bill(
        "bedrock-invoke-model-of-claude",
        "bedrock",
        "global.anthropic.claude-haiku-4-5-20251001-v1:0",
        message("claude-haiku-4-5-20251001", 1_000, 100, cache_read_input_tokens=500),
        [(1_000, "1"), (500, "0.1"), (100, "5")],
        BEDROCK,
    ),
    # --- those that say what they charge
    Bill(
        "openrouter",
        "openrouter",
        "anthropic/claude-sonnet-4.5",
        chat("anthropic/claude-sonnet-4.5", 194, 2, cost=0.00061, is_byok=False, cost_details={}),
        source=OPENROUTER,
        usd="0.00061",
    ),
    Bill(
        "openrouter-with-a-key-of-ones-own",
        "openrouter",
        "openai/gpt-5",
        chat(
            "openai/gpt-5",
            1_000,
            100,
            cost=0.0001125,
            is_byok=True,
            cost_details={"upstream_inference_cost": 0.00225},
        ),
        source=OPENROUTER,
        usd="0.0023625",
    ),
    Bill(
        "openrouter-free",
        "openrouter",
        "z-ai/glm-4.5-air:free",
        chat("z-ai/glm-4.5-air:free", 1_000, 100, cost=0),
        source=OPENROUTER,
    ),
    Bill(
        "openrouter-without-usage-accounting",
        "openrouter",
        "anthropic/claude-sonnet-4.5",
        chat("anthropic/claude-sonnet-4.5", 1_000, 100, cost=None),
        [(1_000, "3"), (100, "15")],
        OPENROUTER,
    ),
    Bill(
        "claude-on-vertex-in-one-region-by-litellm",
        "google",
        "claude-sonnet-4-5@20250929",
        chat("claude-sonnet-4-5@20250929", 1_000, 100),
        [(1_000, "3"), (100, "15")],
        ANTHROPIC,
        times="1.1",
        terms=ModelRequest((), {"model": "vertex_ai/claude-sonnet-4-5@20250929"}).terms,
    ),
    Bill(
        "claude-on-vertex-anywhere-by-litellm",
        "google",
        "claude-sonnet-4-5@20250929",
        chat("claude-sonnet-4-5@20250929", 1_000, 100),
        [(1_000, "3"), (100, "15")],
        ANTHROPIC,
        terms=ModelRequest(
            (), {"model": "vertex_ai/claude-sonnet-4-5@20250929", "vertex_location": "global"}
        ).terms,
    ),
    Bill(
        "xai-tools",
        "xai",
        "grok-4",
        response("grok-4-0709", 1_000, 100, output=searches("search"))
        | {
            "usage": {
                "input_tokens": 1_000,
                "output_tokens": 100,
                "total_tokens": 1_100,
                "server_side_tool_usage_details": {
                    "web_search_calls": 1,
                    "x_search_calls": 2,
                    "mcp_calls": 4,
                },
            }
        },
        [(1_000, "3"), (100, "15")],
        XAI,
        usd="0.015",
    ),
    Bill(
        "moonshot-cached",
        "moonshotai",
        "kimi-k2-0905-preview",
        chat("kimi-k2-0905-preview", 1_000, 100, cached_tokens=800),
        [(200, "0.6"), (800, "0.15"), (100, "2.5")],
        MOONSHOT,
    ),
    Bill(
        "deepseek-as-before",
        "deepseek",
        "deepseek-chat",
        chat("deepseek-chat", 1_000, 10, prompt_cache_hit_tokens=600, prompt_cache_miss_tokens=400),
        [(400, "0.27"), (600, "0.07"), (10, "1.1")],
        DEEPSEEK,
        at=datetime(2025, 6, 1, 12, tzinfo=UTC),
    ),
    Bill(
        "xai",
        "xai",
        "grok-4",
        chat("grok-4-0709", 100, 20, cost_in_usd_ticks=37_756_000),
        source=XAI,
        usd="0.0037756",
    ),
    Bill(
        "perplexity",
        "perplexity",
        "sonar",
        chat("sonar", 8, 430, cost={"input_tokens_cost": 0.0, "request_cost": 0.005, "total_cost": 0.0054}),
        source=PERPLEXITY,
        usd="0.0054",
    ),
]


_COSTS: Final = ModelCosts(ModelPrices())


def booked(bill: Bill, answer: Any = None, provider: str | None = "") -> Usage:
    """What is charged for the call; as if nobody knew the provider, where that is None."""
    provider = bill.provider if provider == "" else provider
    counted = model_usage(answer or bill.answer, provider=provider, terms=bill.terms, at=bill.at)
    assert counted is not None
    return _COSTS.priced(bill.model, counted, provider=bill.provider)


def table() -> str:
    """The bills as a table: what is right, and what is booked."""
    lines = ["| object | model | right, USD | booked, USD | | source |", "|---|---|---|---|---|---|"]
    for bill in BILLS:
        right, charged = bill.amount.normalize(), booked(bill).usd.normalize()
        verdict = "equal" if charged == right else "not below" if charged > right else "BELOW"
        lines.append(f"| {bill.id} | {bill.model} | {right:f} | {charged:f} | {verdict} | {bill.source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
