"""What a decoder is made of, as data."""
