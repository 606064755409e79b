"""Runnable experiments: one package a system, one entry point for all."""
