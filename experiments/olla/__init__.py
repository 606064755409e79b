"""OLLA (arXiv:2510.22044): sampling under constraints."""
