"""Alerts: what an operator is to be told without looking, by logging, metrics and webhooks.

They are found by a process of their own (`agentguard alerts watch`, `agentguard serve`), never by an agent's.
"""
