"""`guard_client`: LiteLLM's functions as guarded steps.

A wrapper, since no callback can stop a call: LiteLLM logs what `log_pre_api_call` raises, and sends the
request all the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Unpack

import wrapt

from agentguard_clients import ClientOptions
from agentguard_litellm._call import Guarding

#: What reaches a provider in ways that nobody here can price or follow.
_REFUSED = frozenset(
    {
        "Router",
        "acreate_batch",
        "acreate_fine_tuning_job",
        "adapter_completion",
        "agenerate_content",
        "aimage_edit",
        "aimage_generation",
        "amoderation",
        "anthropic_messages",
        "aocr",
        "arerank",
        "aresponses",
        "aspeech",
        "atranscription",
        "batch_completion",
        "batch_completion_models",
        "completion_with_retries",
        "acompletion_with_retries",
        "create_batch",
        "create_fine_tuning_job",
        "generate_content",
        "image_edit",
        "image_generation",
        "moderation",
        "ocr",
        "rerank",
        "responses",
        "speech",
        "transcription",
    }
)


class GuardedLiteLLM(wrapt.BaseObjectProxy[ModuleType]):
    """The module `litellm`, whose calls of models are guarded steps; all else of it is as it was."""

    def __init__(self, module: ModuleType, guarding: Guarding) -> None:
        super().__init__(module)
        self._self_guarding = guarding

    def completion(self, *args: Any, **kwargs: Any) -> Any:
        """Call `litellm.completion` as a guarded step; with `stream=True` until it is read or closed."""
        return self._self_guarding.call(self.__wrapped__.completion, args, kwargs)

    async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
        """Call `litellm.acompletion` as a guarded step; with `stream=True` until it is read or closed."""
        return await self._self_guarding.acall(self.__wrapped__.acompletion, args, kwargs)

    def text_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Call `litellm.text_completion` as a guarded step."""
        return self._self_guarding.call(self.__wrapped__.text_completion, args, kwargs)

    async def atext_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Call `litellm.atext_completion` as a guarded step."""
        return await self._self_guarding.acall(self.__wrapped__.atext_completion, args, kwargs)

    def embedding(self, *args: Any, **kwargs: Any) -> Any:
        """Call `litellm.embedding` as a guarded step."""
        return self._self_guarding.call(self.__wrapped__.embedding, args, kwargs)

    async def aembedding(self, *args: Any, **kwargs: Any) -> Any:
        """Call `litellm.aembedding` as a guarded step."""
        return await self._self_guarding.acall(self.__wrapped__.aembedding, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED:
            raise AttributeError(
                f"litellm.{name} is not guarded: make the call with the bare module, inside a guarded_step "
                "that names its usage="
            )
        return super().__getattr__(name)


def guard_client(litellm: ModuleType, **options: Unpack[ClientOptions]) -> GuardedLiteLLM:
    """Return LiteLLM with its calls of models as guarded steps.

    `completion`, `acompletion`, `text_completion`, `atext_completion`, `embedding` and `aembedding` are
    guarded.  LiteLLM's own retries are switched off, since their attempts would not be seen.

    Args:
        litellm: the module.
        options: `run` (the run that pays; by default the one that is active), `prices` (a `PriceBook`; by
            default genai-prices), `unpriced` (`"refuse"` or `"allow"` calls without a price where USD are
            limited), `max_output_tokens` (the bound of calls that name none), `clamp` (True: lower the
            bound to what the budget leaves), `outside` (`"refuse"` or `"allow"` calls outside a run),
            `provider` (who serves the models, for the price book; by default by the model's name).

    Raises:
        TypeError: not the module; a `Router` calls it in ways that are not seen here.
    """
    if isinstance(litellm, GuardedLiteLLM):
        litellm = litellm.__wrapped__
    if not isinstance(litellm, ModuleType) or litellm.__name__ != "litellm":
        raise TypeError(
            f"guard_client takes the module litellm, not {type(litellm).__name__}: a Router makes calls, "
            "retries and fallbacks of its own that nobody sees; call the guarded module in its place"
        )
    return GuardedLiteLLM(litellm, Guarding(**options))
