"""Measures models: the served model.onnx, exactly the file that Triton loads, or a run's checkpoint."""
