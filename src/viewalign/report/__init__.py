"""From a run's folder to one self-contained page that says honestly whether the run is healthy."""
