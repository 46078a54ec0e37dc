"""Specialists on other servers, by OpenAI's protocol."""
