"""Agents: models that call tools, and the tools."""
