"""Tests of an agent that call neither model nor service: both are on cassettes, beside this file.

Run it:       python -m pytest examples/34_pytest_cassette
In CI:        python -m pytest examples/34_pytest_cassette --agentguard-record=none
Record again: python -m pytest examples/34_pytest_cassette --agentguard-record=all
"""

import pytest
from weather_agent import answer

from agentguard import Budget, BudgetExceededError
from agentguard.testing.replaying import Cassette


@pytest.mark.agentguard_cassette
def test_it_answers_for_each_city() -> None:
    assert answer("is it warmer in Oslo or in Lima?") == "Oslo: 16.5 °C; Lima: 16.5 °C"


@pytest.mark.agentguard_cassette
def test_it_says_what_nobody_knows() -> None:
    assert answer("how is Atlantis?") == "Atlantis: nobody knows"


@pytest.mark.agentguard_cassette(budget=Budget(steps=3))
def test_it_stops_at_its_budget(agentguard_cassette: Cassette) -> None:
    with pytest.raises(BudgetExceededError):
        answer("Oslo, Lima, Rome, Bonn?")
    assert agentguard_cassette.run.stop is not None  # a stop is no error of the test by itself
