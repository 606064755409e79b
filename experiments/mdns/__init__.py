"""MDNS: masked samplers of lattice models."""
