"""Samplers of consistency models: one step, several, progressive distillation."""
