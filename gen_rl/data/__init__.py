"""Prompt sources, tokenizers and the deterministic prompt pipeline."""
