"""Flows trained on pairs from optimal transport, and on other pairs."""
