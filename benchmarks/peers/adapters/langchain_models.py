"""LangChain's ModelCallLimitMiddleware, with its default end: what is counted is the model's calls."""

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

REQUIRES = "langchain==1.5.2"
STOPS = ()
ONE_BY_ONE = "a run asks one by one"
SAYS = {"64 threads": ONE_BY_ONE, "64 tasks": ONE_BY_ONE}


class Scripted(GenericFakeChatModel):
    def bind_tools(self, tools, **_):
        return self


def step() -> str:
    """Do nothing: the agent asks the model again after it."""
    return "done"


def drive(limit, body, calls, at_once):
    def answers():
        for number in range(calls):
            body()
            yield AIMessage("", tool_calls=[{"name": "step", "args": {}, "id": str(number)}])
        yield AIMessage("Done.")

    limits = [] if limit is None else [ModelCallLimitMiddleware(run_limit=limit)]
    agent = create_agent(Scripted(messages=answers()), [step], middleware=limits)
    ended = agent.invoke({"messages": [("user", "Go on.")]})
    return "its last message" if "limits exceeded" in ended["messages"][-1].text else None
