"""Thin Ray Train entry points that a tenant would submit."""
