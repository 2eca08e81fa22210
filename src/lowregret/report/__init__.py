"""What a run found, as tables, figures and one HTML file. Reads run directories only; no torch."""
