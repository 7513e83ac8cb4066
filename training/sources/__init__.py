"""Readers: one file per log layout, each yielding raw columns under the names of a dataset schema."""
