"""What a run found, for people: tables, heatmaps, charts, one HTML page, a few lines on the terminal."""
