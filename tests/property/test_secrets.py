"""A search never says that there is nothing where something would be taken out, whichever engine searches."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentguard._encoding import encode_call
from agentguard._secrets.names import SECRET_NAMES, Names
from agentguard._secrets.search import Pure, Search, re2_search
from agentguard.steps.redaction import Redactor
from tests.scale import scaled
from tests.unit.test_redaction import HARMLESS, SECRETS

pytest.importorskip("re2")
SETTINGS = settings(deadline=None, max_examples=scaled(300))
NAMES = Names(["ssn", "card number"])
noise = st.text(st.sampled_from(" \n\t\"'\\=:;&?/.-_<>@{}[](),aZ9é"), max_size=6)
spelt = st.builds(
    lambda name, between, upper: (name.upper() if upper else name).replace(" ", between),
    st.sampled_from([*SECRET_NAMES, "ssn", "card number", "max_tokens", "note"]),
    st.sampled_from(["", "_", "-", ".", " "]),
    st.booleans(),
)
pieces = (
    noise | spelt | st.sampled_from([text for text, _ in SECRETS.values()] + HARMLESS + ["hunter2", "a b"])
)
texts = st.lists(pieces, max_size=6).map("".join)
values = st.recursive(
    texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


def engines() -> list[Search]:
    fast = re2_search(NAMES)
    assert fast is not None
    return [Pure(NAMES), fast]


ENGINES = engines()


@SETTINGS
@given(values)
@example([text for text, _ in SECRETS.values()])
def test_what_would_be_masked_is_never_overlooked(value):
    payload = encode_call((value,), {})
    redactor = Redactor(["ssn", "card number"])
    looked_through = Redactor(["ssn", "card number"])
    looked_through._search = lambda _: True
    masked = looked_through.call(payload, ("value",))
    assert redactor.call(payload, ("value",)) == masked
    if masked != payload:
        assert all(search(payload) for search in ENGINES)
