"""Plans: which module gets which format, made by rules, kept in plan.json, counted in bits and bytes."""
