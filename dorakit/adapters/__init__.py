"""Adapted layers; which there are stands in dorakit/methods.py."""
