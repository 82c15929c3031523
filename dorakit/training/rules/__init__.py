"""Rules around an optimizer step; dorakit/methods.py lists them."""
