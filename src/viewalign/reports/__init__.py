"""Self-contained HTML reports of result folders."""
