"""Low rank: methods, and rules for ranks."""
