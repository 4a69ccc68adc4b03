"""What tests of whole programs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.clients.server import serve
from tests.relays import Hosts


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, str]]:
    """The settings by which programs that use providers' SDKs reach a local server in their place."""
    with serve(uses_all=True) as server:
        yield {
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": f"{server.url}/v1",
            "ANTHROPIC_API_KEY": "k",
            "ANTHROPIC_BASE_URL": server.url,
            "ANTHROPIC_API_BASE": server.url,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }


@pytest.fixture
def host(url: str, tmp_path: Path) -> Iterator[Hosts]:
    """Hosts that follow the kills at `url`, which is a fixture of the test's module."""
    hosts = Hosts(url, tmp_path)
    try:
        yield hosts
    finally:
        hosts.close()
