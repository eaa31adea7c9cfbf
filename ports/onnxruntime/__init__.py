"""onnxruntime before the kit."""
