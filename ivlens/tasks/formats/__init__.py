"""The formats of task files: one module for each kind of content, and what all of them share."""
