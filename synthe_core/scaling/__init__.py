"""Scaling laws: grids of sizes and token counts, fits of loss, plans for a budget."""
