"""The official names of each family and head, as tables."""
