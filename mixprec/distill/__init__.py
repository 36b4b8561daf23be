"""A student learns from a teacher's traces: from their text (TRL's SFTTrainer), or from the teacher's predictions too.

TRL, peft and datasets are the extra ``distill``; only ``trainer`` imports them. ``RULES`` is in the fingerprint of
what a killed run left; it is raised where the same inputs lead to other weights.
"""

RULES = 1
