"""One file per published system; import a system from its own module or from `tfvidgen`."""
