"""Searching a library of videos with sentences: moments without training, calibrated scores."""
