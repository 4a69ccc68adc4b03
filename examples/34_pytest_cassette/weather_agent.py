"""The agent under test: it asks a model for cities and a service for their weather."""

import sys
from dataclasses import dataclass

from agentguard import Usage, guarded_step


class UnknownCityError(LookupError):
    """The service does not know the city."""


@dataclass
class Weather:
    city: str
    degrees: float


@guarded_step(kind="llm", usage=Usage(usd="0.01", input_tokens=20, output_tokens=8))
def cities_in(question: str) -> list[str]:
    print("called the model", file=sys.stderr)  # stands for a call that costs money
    return [word.strip("?,.") for word in question.split() if word[0].isupper()]


@guarded_step(effect="read")
def weather_in(city: str) -> Weather:
    print(f"called the service about {city}", file=sys.stderr)  # stands for a call that needs a network
    if city == "Atlantis":
        raise UnknownCityError(city)
    return Weather(city, 20.5 - len(city))


def answer(question: str) -> str:
    said = []
    for city in cities_in(question):
        try:
            said.append(f"{city}: {weather_in(city).degrees} °C")
        except UnknownCityError:
            said.append(f"{city}: nobody knows")
    return "; ".join(said)
