"""Files of every kind, written whole or not at all, and read with one error for what is wrong with them."""
