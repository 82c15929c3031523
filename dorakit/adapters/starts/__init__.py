"""Starts: where A and B begin when that is not Kaiming and zeros. (W float32 (O, I), rank, scaling, ...) -> (A0, B0)."""
