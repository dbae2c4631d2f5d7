"""Results as people look at them: figures, HTML pages, the demo and the lab."""
