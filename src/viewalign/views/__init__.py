"""Views of volumes with exact affines: geometry, resampling, intensity transforms, alignment of features."""
