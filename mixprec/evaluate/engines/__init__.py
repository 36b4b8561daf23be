"""Engines: what generates. requests in, generations out as they are done. Nothing else knows which one it is."""
