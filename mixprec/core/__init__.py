"""What stands under everything: errors, files, locks, stages, processes, progress. Imports nothing else of mixprec."""
