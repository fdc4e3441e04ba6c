"""From files to a prepared store: catalogue, sources, reading, preparing, storing. Knows no network."""
