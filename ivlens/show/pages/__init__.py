"""Reports as single HTML files that need nothing else."""
