"""Comparison of images by their thumbnails: vectors, crops and mirror images, alignment.

Used by `near_duplicates` and `splitting`. Nothing here opens a file.
"""
