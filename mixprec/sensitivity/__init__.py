"""Predicted damage: what each module costs the model in each format, by gradients, by errors alone, or measured."""
