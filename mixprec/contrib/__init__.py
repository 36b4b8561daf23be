"""Other quantizers: their runners (``peers``) and the syntaxes they read plans in (``export``).

Public and tested, but outside the core: nothing below recipes, the pipeline and the command line imports it.
"""
