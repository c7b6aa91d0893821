"""Small experiments whose results stand in docs/."""
