"""The web console: see the live runs, stop them, and read what happened.

`create_app` in `agentguard.console.app` returns the ASGI application; `agentguard serve` runs it.
"""
