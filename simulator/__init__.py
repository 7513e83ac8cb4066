"""A feed with a known latent emotion: writes logs, and plays users against a running ranker.

Knows nothing of the models that learn from its logs.
"""
