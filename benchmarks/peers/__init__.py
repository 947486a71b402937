"""Other frameworks' versions of what is measured."""
