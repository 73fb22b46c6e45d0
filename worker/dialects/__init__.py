"""Outside JSON to the contract and back: one file an API format, and the table that chooses among them."""
