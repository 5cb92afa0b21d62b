"""Formats for the finished model."""
