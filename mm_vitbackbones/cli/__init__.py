"""The commands: one module each, and what they share. They use the whole package, and nothing uses them."""
