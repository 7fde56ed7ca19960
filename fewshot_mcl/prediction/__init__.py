"""Answers for new images: nearest class means, probabilities that were calibrated, and "none of these"."""
