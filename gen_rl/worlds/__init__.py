"""Embedded worlds: renderer, prompt grammar and exact oracles."""
