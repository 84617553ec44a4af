"""Export a model as a folder that others can load: safetensors, ONNX, card, manifest."""
