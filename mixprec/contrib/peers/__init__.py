"""Other quantizers in mixprec's runs: each in a Python environment of its own, called through one small runner."""

#: Raised when what peers are asked to do, or how it is read back, changes: checkpoints are made again then.
RULES = 1
