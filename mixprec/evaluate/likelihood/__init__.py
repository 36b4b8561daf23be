"""How likely a model finds the answers of benchmarks behind a fixed beginning of an answer: no generation, no noise.

Not the paper's protocol, where a model thinks as long as it likes. It costs one pass over each question, and two models
are compared question by question.
"""
