"""Programs that make and measure: `python -m trainers.navsynth --help`."""
