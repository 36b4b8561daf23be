"""What is tuned behind a solve: a whole model's scales and norms by its predictions, or a block by its output.

``RULES`` is in the fingerprints of what is tuned; it is raised where the same inputs lead to other values.
"""

RULES = 1
