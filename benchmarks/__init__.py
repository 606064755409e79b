"""Printed comparisons, each against a named baseline measured in one run."""
