"""Tracing: a family's Python step becomes a program of tile operations."""
