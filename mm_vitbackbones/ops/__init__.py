"""How things are computed: fast forms next to their references. Knows no family, no registry and no config."""
