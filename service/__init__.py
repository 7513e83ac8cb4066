"""The ranking service: FastAPI in front, ONNX Runtime behind, fusion between; never imports torch."""
