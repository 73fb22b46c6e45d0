"""Our own model code, in plain torch: the families that most people serve, quicker to start and to run."""
