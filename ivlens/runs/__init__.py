"""Many measurements together: suites of tasks, sweeps over a grid of options, and the study of the paper's claims."""
