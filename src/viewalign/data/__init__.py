"""From files to a prepared store: sources, readers, catalogue, preprocessing."""
