"""Files and programs that nobody should trust, made from a seed, and what becomes of them."""
