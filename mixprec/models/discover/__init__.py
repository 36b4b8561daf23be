"""Maps of decoders that no table describes, from what transformers builds of their configurations."""
