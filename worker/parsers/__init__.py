"""What a model wrote, told apart: its thinking, its words, its calls of tools. Knows no model, dialect or engine."""
