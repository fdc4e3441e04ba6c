"""From a store to batches of views whose geometry is exact. Knows no loss and no network."""
