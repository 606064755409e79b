"""PDNS (arXiv:2510.03824): sampling by proximal steps on path measures."""
