"""The walk through a model's blocks: their weights come and go, calibration samples pass in micro-batches."""
