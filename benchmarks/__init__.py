"""Measured claims: each module is a command that prints and can rewrite its figures."""
