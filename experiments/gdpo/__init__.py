"""GDPO: group policy optimisation of masked language models."""
