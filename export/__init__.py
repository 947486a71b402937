"""Programs that export, serve and publish a trained run: `python -m export.saved_model --help`."""
