"""Programs that train, generate and evaluate: `python -m trainers.navsynth --help`."""
