"""LangGraph's SqliteSaver: a graph whose node is the step, with `durability="sync"`; and its time travel."""

from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

REQUIRES = "langgraph-checkpoint-sqlite==3.1.2 langgraph==1.2.24"
SAYS = {"after each step": "fsynced: survives power loss"}


class State(TypedDict):
    number: int
    steps: int


def engine(folder, body):
    graph = StateGraph(State)
    graph.add_node("step", lambda state: {"number": body(state["number"] + 1)})
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: "step" if state["number"] < state["steps"] else END)
    with SqliteSaver.from_conn_string(f"{folder}/graph.db") as saver:
        compiled = graph.compile(checkpointer=saver)

        def run(name, steps):
            config = {"configurable": {"thread_id": name}, "recursion_limit": 10**6}
            begun = compiled.get_state(config).next
            compiled.invoke(None if begun else {"number": 0, "steps": steps}, config, durability="sync")

        def replay(name, _):
            first = list(compiled.get_state_history({"configurable": {"thread_id": name}}))[-2]
            compiled.invoke(None, first.config)

        yield run, replay
