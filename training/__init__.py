"""Data sources, prepared data, the DLEN family of models, losses, training, metrics, the paper's tables."""
