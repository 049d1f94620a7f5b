"""What networks are made of: layers, blocks, adapters."""
