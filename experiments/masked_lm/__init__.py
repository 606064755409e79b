"""Masked diffusion language models: pretraining, and tuning by reward."""
