"""The bot's conversations: what was said before, in memory, in SQLite or in Redis."""
