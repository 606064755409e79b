"""Methods: losses and update rules, one module a paper."""

from jdiff.methods import mdns, wdce

__all__ = ["mdns", "wdce"]
