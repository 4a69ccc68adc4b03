"""The JSON API does what its OpenAPI document says, whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from agentguard import Budget, Guard
from agentguard.console.app import create_app
from agentguard.console.tokens import Role, Tokens

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

EXAMPLES = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Any]:
    tokens = Tokens(tmp_path / "tokens.json")
    header = {"authorization": f"Bearer {tokens.add('ann', Role.ADMIN)}"}
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("ended", run_id="r1", budget=Budget(usd=1)) as run:
            run.call("x", int)
        yield schemathesis.openapi.from_asgi("/api/openapi.json", create_app(guard, tokens), headers=header)


def test_every_answer_is_one_that_the_document_names(api: Any) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        _try(operation)


def _try(operation: Any) -> None:
    @EXAMPLES
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()
