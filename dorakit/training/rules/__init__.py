"""What surrounds an optimizer step. Which rules there are stands in dorakit/methods.py."""
