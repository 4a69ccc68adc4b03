"""What a request to a model says of its cost before it is sent: prompt, bound, tier and cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from agentguard.budget.model_usage import ModelUsage, Number
from agentguard.cost.hosted import offered, search_terms
from agentguard.cost.media import Media, file_data, is_words, media_tokens
from agentguard.cost.usage import USUAL_OUTPUT, CacheTtl, written_unasked

#: What the APIs call the model, the bound of an answer and the number of answers, and where they nest them.
_MODELS: Final = ("model", "model_name", "modelId", "model_id")
_BOUNDS: Final = (
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "maxTokens",
    "maxOutputTokens",
    "max_tokens_to_sample",
)
_ANSWERS: Final = ("n", "best_of", "candidate_count", "candidateCount")
_NESTED: Final = ("inferenceConfig", "config", "generation_config", "generationConfig")
#: Parts of a message that are no text, by the `type` or the key that says so.
_MEDIA_TYPES: Final = frozenset(
    ("image_url", "input_image", "image", "input_audio", "audio", "video", "document", "input_file", "file")
)
#: Documents in words, by the type of their source.
_WRITTEN: Final = frozenset(("text", "content"))
#: Terms that raise no price.
_NOT_DEARER: Final = frozenset(("auto", "default", "flex", "global", "batch", "standard", "standard_only"))
_MEDIA_KEYS: Final = frozenset(("inline_data", "inlineData", "file_data", "fileData"))


class ModelRequest(NamedTuple):
    """What a call of an SDK asks for.

    Example:
        >>> request = ModelRequest((), {"model": "gpt-5", "input": "Why?", "max_output_tokens": 90})
        >>> request.model, request.max_tokens, request.input_tokens
        ('gpt-5', 90, 5)
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def model(self) -> str | None:
        """The model that is asked for."""
        found = self._option(_MODELS)
        return found if isinstance(found, str) and found else None

    @property
    def max_tokens(self) -> int | None:
        """The bound that the call names, for all answers that it asks for; 0 where it wants none."""
        bound = self._option(_BOUNDS)
        return bound * self.answers if bound == 0 or _is_count(bound) else None

    @property
    def answers(self) -> int:
        """How many answers are asked for, to all prompts."""
        asked = [self._option((name,)) for name in _ANSWERS]
        prompts = self.kwargs.get("prompt")  # of text completions, which take several
        each = max((count for count in asked if _is_count(count)), default=1)
        if isinstance(prompts, list) and all(isinstance(prompt, str | list) for prompt in prompts):
            return each * max(len(prompts), 1)
        return each

    @property
    def input_tokens(self) -> int:
        """About how many tokens the prompt has, on the high side."""
        return prompt_tokens([*self.args, *self.kwargs.values()], self.model)

    @property
    def terms(self) -> dict[str, str]:
        """What the call asks for that selects another price."""
        if not self.kwargs:
            return {}
        tier, speed = self.kwargs.get("service_tier"), self.kwargs.get("speed")
        asked = {"service_tier": tier, "speed": speed, "inference_geo": self.kwargs.get("inference_geo")}
        said = {name: value for name, value in asked.items() if isinstance(value, str)}
        if (self.model or "").startswith("vertex_ai/") and self.kwargs.get("vertex_location") != "global":
            said["endpoint"] = "regional"  # as LiteLLM calls it, where nothing else is said
        return said | search_terms(self.kwargs)

    @property
    def cache_writes(self) -> CacheTtl | None:
        """For how long the call asks to keep its prompt in a cache: the longest of its parts."""
        found = set(_ttls(self.kwargs))
        return None if not found else "1h" if "1h" in found else "5m"

    @property
    def hosted(self) -> ModelUsage:
        """What the call may cost beside text: the provider's own tools that it offers, and sound in it."""
        return self._hosted_by(self.model or "")

    def _hosted_by(self, model: str) -> ModelUsage:
        found = offered(self.kwargs, model)
        heard = _heard(self.kwargs, model) if _HEARS.search(model) else 0
        return msgspec.structs.replace(found, counts=found.counts | {"input_audio_tokens": heard})

    @property
    def samples_beside(self) -> str | None:
        """What makes Claude sample beside its answer, at a price that `usage.iterations` alone tells."""
        management = self.kwargs.get("context_management")
        edits = management.get("edits") if isinstance(management, Mapping) else None
        named = [str(each.get("type")) for each in edits or () if isinstance(each, Mapping)]
        tools = self.kwargs.get("tools") or ()
        named += [str(tool.get("type")) for tool in tools if isinstance(tool, Mapping)]
        if self.kwargs.get("compaction"):
            return "compaction"
        return next((name for name in named if name.startswith(("compact_", "advisor_"))), None)

    @property
    def spoken(self) -> bool:
        """Whether the answer may be sound."""
        return "audio" in (self.kwargs.get("modalities") or ())

    def usage(self, max_tokens: int | None = None, model: str | None = None) -> ModelUsage:
        """Return the most that the call can use.

        Args:
            max_tokens: the bound where the call names none; without either it is an estimate.
            model: the model where the call names none.
        """
        model = self.model or model
        given = prompt_tokens([*self.args, *self.kwargs.values()], model)
        kept = self.cache_writes or written_unasked(model or "")
        bound = self.max_tokens
        if bound is None:
            bound = (max_tokens or USUAL_OUTPUT) * self.answers
        hosted = self._hosted_by(model or "")
        counts: dict[str, Number] = {**hosted.counts, "input_tokens": given, "output_tokens": bound}
        if kept is not None:
            counts[f"cache_write_{kept}_tokens"] = given
        if self.spoken:
            counts["output_audio_tokens"] = bound
        return ModelUsage(counts=counts, terms=self.terms, beside=hosted.beside)

    def completed(self, counted: ModelUsage, *, place_told: bool = True) -> ModelUsage:
        """Return what an answer counted; what it does not tell of its price at the most that it can be.

        That is the tier and the speed that the call asks for where they are dearer, and for cache writes
        the longest time that it asks for, an hour where it names none.

        Args:
            counted: what is known of the answer.
            place_told: False for answers that have lost where Claude was run: the dearest is taken.
        """
        dearer = {name: value for name, value in self.terms.items() if value not in _NOT_DEARER}
        terms = ({} if place_told else {"inference_geo": "us"}) | dearer | counted.terms
        counts = dict(counted.counts)
        untold = counts.get("cache_write_tokens", 0)
        if untold > 0:
            untold -= sum(counts.get(f"cache_write_{ttl}_tokens", 0) for ttl in ("5m", "1h"))
        if untold > 0 and "claude" in f"{counted.model} {self.model}":
            name = f"cache_write_{self.cache_writes or '1h'}_tokens"
            counts[name] = counts.get(name, 0) + untold
        if counts == counted.counts and terms == counted.terms:
            return counted
        return msgspec.structs.replace(counted, counts=counts, terms=terms)

    def _option(self, names: tuple[str, ...]) -> Any:
        for holder in (self.kwargs, *map(self.kwargs.get, _NESTED)):
            for name in names if holder is not None else ():
                value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
                if value is not None:
                    return value
        return None


def prompt_tokens(value: object, model: str | None = None) -> int:
    """Return about how many tokens a prompt has, on the high side: its text, and what is no text.

    Args:
        value: the prompt, or a request with it.
        model: who reads it: models take different numbers of tokens for an image.
    """
    size = media = 0
    for text in _parts(value):
        if isinstance(text, str):
            size += len(text.encode("utf-8", "replace")) + 1
        else:
            media += media_tokens(model, text)
    return -(-size // 3) + media


#: Models that hear.
_HEARS: Final = re.compile(r"audio|gemini|voxtral")
#: A number, as of a prompt in tokens: so long that it counts as one.
_NUMBER: Final = "00"


def _parts(value: object) -> Iterator[str | Media]:
    """Yield the texts of a prompt, and each image or file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int | float):
        yield _NUMBER
    elif isinstance(value, bytes):
        yield {}
    elif isinstance(value, Mapping):
        if _is_media(value):
            yield from _media(value)
            return
        for name, item in value.items():
            yield str(name)
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield from _parts_of_model(value)


def _heard(request: Mapping[str, Any], model: str) -> int:
    parts = (part for part in _parts(list(request.values())) if isinstance(part, Mapping))
    return sum(media_tokens(model, part) for part in parts if "input_audio" in part)


def _is_media(part: Mapping[Any, Any]) -> bool:
    kind = part.get("type")  # in a JSON schema it may be a list, or a schema of a field of that name
    return (isinstance(kind, str) and kind in _MEDIA_TYPES) or not _MEDIA_KEYS.isdisjoint(part)


def _media(part: Mapping[Any, Any]) -> Iterator[str | Media]:
    """Yield an image, a sound or a file; of one that is in words, the words."""
    source, file = part.get("source"), file_data(part)
    if isinstance(source, Mapping) and source.get("type") in _WRITTEN:
        yield from _parts(source)
    else:
        yield file if file is not None and is_words(file) else part
    yield from _parts([part.get("title"), part.get("context")])


def _parts_of_model(value: object) -> Iterator[str | Media]:
    if isinstance(value, type):  # what to answer with
        schema = getattr(value, "model_json_schema", None)
        yield from _parts(schema() if callable(schema) else None)
    elif callable(dump := getattr(value, "model_dump", None)):  # an SDK's own message
        yield from _parts(dump(exclude_none=True, warnings=False))


def _ttls(value: object) -> Iterator[CacheTtl]:
    if isinstance(value, Mapping):
        mark = value.get("cache_control") or value.get("cachePoint")
        if isinstance(mark, Mapping):
            yield "1h" if mark.get("ttl") == "1h" else "5m"
        for item in value.values():
            yield from _ttls(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _ttls(item)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
