"""A feed with a known latent emotion: writes logs, and the truth behind them in a file of its own.

Knows nothing of the models that learn from its logs.
"""
