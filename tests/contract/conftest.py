"""The suites lie in the package, where pytest would leave their assertions as they are."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("agentguard.testing.conformance")
