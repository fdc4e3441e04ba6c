"""From an encoder to a segmentation network, with stock nnU-Net as the engine."""
