"""Views with exact affines: sampling, resampling, intensity, alignment. They know no loss."""
