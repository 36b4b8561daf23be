"""Pure tensor functions: number formats and group-wise quantization. Knows neither models nor files."""
