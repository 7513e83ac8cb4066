"""Encodings of a rank request and its answer: one file per encoding, all yielding the same arrays."""
