"""Meteorology: weather transformers in plain PyTorch, their checkpoints, losses and scores."""
