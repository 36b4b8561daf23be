"""Joint plans: what scores of single modules leave out is measured on whole plans, and exchanged where that helps."""
