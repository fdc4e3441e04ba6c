"""Command lines, layouts and file formats of nnssl, SSL3D and FOMO."""
