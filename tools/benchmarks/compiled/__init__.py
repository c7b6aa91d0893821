"""What a compiled training step would do on a card, counted without one."""
