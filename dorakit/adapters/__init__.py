"""Adapted layers; dorakit/methods.py lists them."""
