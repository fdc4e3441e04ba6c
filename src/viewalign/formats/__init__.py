"""Other people's formats: nnssl, nnU-Net, Hugging Face, ONNX, the FOMO container."""
