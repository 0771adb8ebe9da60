"""Where programs run: worker processes, and the one place that turns verified text into code."""
