"""Against the references, in an environment of their own: `make parity`."""
