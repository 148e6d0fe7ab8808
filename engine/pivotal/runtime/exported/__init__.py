"""The networks outside PyTorch: ONNX files and TensorRT engines, made and run."""
