"""Operator splitting for guided sampling: LTSP and STSP."""
