"""Thin Ray Serve applications."""
