"""Probabilities → scores → order: formulas, experiments and assignment, rerank rules, weight tuning.

Knows nothing of models, of HTTP, or of how probabilities came to be.
"""
