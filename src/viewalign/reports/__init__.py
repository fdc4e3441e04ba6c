"""From a folder to one self-contained HTML page."""
