"""Checkpoint → serving graph → ONNX → bundle, with parity checks before anything is written."""
