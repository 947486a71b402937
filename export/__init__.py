"""Programs that ship a trained run: `python -m export.saved_model --help`."""
