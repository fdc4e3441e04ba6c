"""Fetching data from the net: resumable, checksummed, with the licence shown first, unpacked without a way out."""
