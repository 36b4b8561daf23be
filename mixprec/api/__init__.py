"""The public functions (docs/api.md). The command line, recipes and notebooks stand on them.

They print nothing and change nothing but what they are asked to; what can be mended is a ``UserError``. A ``progress``
callback hears of every step (``core.progress.Step``).
"""
