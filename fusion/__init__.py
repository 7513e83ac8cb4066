"""Probabilities → scores → order: formulas, experiments and assignment, rerank rules, hot-reloaded config.

Knows nothing of models, of HTTP, or of how probabilities came to be.
"""
