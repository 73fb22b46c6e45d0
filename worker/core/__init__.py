"""What every layer may use: the contract, errors, settings, deadlines, the log. Knows no model and no network."""
