"""Predictions in bulk: millions of images, answered in a stream, in memory that does not grow, resumed after a kill."""
