"""Measurements of phiquant: quality against bits, next to the formats people use today."""
