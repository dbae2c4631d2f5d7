"""Results for people: figures, pages, the demo, the lab."""
