"""Specialists on one base model: routed to, checked, and improved by use."""
