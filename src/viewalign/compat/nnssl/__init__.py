"""The command lines of nnssl and its layout of datasets."""
