"""What calls of models cost: what a provider counted, its price, and what a call may cost at most."""

from typing import TYPE_CHECKING

from agentguard._exports import exported

if TYPE_CHECKING:
    from agentguard.budget.model_usage import ModelUsage
    from agentguard.cost.hosted import tool_calls
    from agentguard.cost.presets import reserve_of, usage_of
    from agentguard.cost.prices import GENAI_PRICES, ModelPrices
    from agentguard.cost.provider import model_usage, terms_and_cost
    from agentguard.cost.raw import RawAnswers
    from agentguard.cost.refusals import is_refusal, proves_refusal
    from agentguard.cost.request import ModelRequest
    from agentguard.cost.usage import Bound, ModelCosts, estimated_tokens

__getattr__, __dir__ = exported(
    __name__,
    {
        "agentguard.budget.model_usage": ("ModelUsage",),
        "agentguard.cost.hosted": ("tool_calls",),
        "agentguard.cost.presets": ("reserve_of", "usage_of"),
        "agentguard.cost.prices": ("GENAI_PRICES", "ModelPrices"),
        "agentguard.cost.provider": ("model_usage", "terms_and_cost"),
        "agentguard.cost.raw": ("RawAnswers",),
        "agentguard.cost.refusals": ("is_refusal", "proves_refusal"),
        "agentguard.cost.request": ("ModelRequest",),
        "agentguard.cost.usage": ("Bound", "ModelCosts", "estimated_tokens"),
    },
)

__all__ = [
    "GENAI_PRICES",
    "Bound",
    "ModelCosts",
    "ModelPrices",
    "ModelRequest",
    "ModelUsage",
    "RawAnswers",
    "estimated_tokens",
    "is_refusal",
    "model_usage",
    "proves_refusal",
    "reserve_of",
    "terms_and_cost",
    "tool_calls",
    "usage_of",
]
