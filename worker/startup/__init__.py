"""From the process's first moment to a model that answers."""
