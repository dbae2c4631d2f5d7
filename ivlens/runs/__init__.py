"""Many measurements at once: suites of tasks, sweeps, the study."""
