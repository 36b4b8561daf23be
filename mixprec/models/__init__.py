"""Models: where they are, what they are made of, and opening them whole or block by block."""
