"""Training in float32, bfloat16 and float16."""
