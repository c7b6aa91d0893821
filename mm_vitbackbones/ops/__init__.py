"""How things are computed: fast forms beside their references. Knows no family, no registry and no config."""
