"""Other quantizers in mixprec's runs: each in a Python environment of its own, called through one small runner."""
