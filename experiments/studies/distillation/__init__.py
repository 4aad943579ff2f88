"""Small students of a large teacher."""
