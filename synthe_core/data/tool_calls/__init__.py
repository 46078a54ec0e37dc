"""Calls of tools as models write them: the formats of published models, and what is read from a text in one."""
