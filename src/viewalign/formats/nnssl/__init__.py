"""nnssl's datasets, plans and weights: read as nnssl writes them, written as nnssl reads them."""
