"""Views of volumes with exact affines: geometry, resampling, intensity, alignment of features."""
