"""The contract between training and serving: feature schema, encoding, manifest, and its errors.

Knows nothing of how a model is trained (no torch) nor of how it is served (no web framework).
"""
