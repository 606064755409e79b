"""Masked world models: frames of tokens, imagined in a loop with a memory."""
