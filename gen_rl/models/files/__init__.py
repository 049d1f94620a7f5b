"""Weights as others keep them: safetensors, torch, folders, adapters."""
