"""Segmentation by stock nnU-Net with a pretrained encoder."""
