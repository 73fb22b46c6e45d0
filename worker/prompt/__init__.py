"""A request and its opened media to a prompt: token ids, patches, positions."""
