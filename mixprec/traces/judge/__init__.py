"""A language model as annotator: behind a server with OpenAI's protocol, asked piece by piece, and never believed.

The order of the work: ``prompts`` (what is asked) → ``pieces`` (a trace in overlapping pieces) → ``run`` (asks, asks
again, puts together) → ``reading`` (what of an answer stands in the text). ``answers`` keeps all that was said.
"""
