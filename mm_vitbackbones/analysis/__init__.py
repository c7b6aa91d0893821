"""What a trained model gets wrong, from its predictions: numbers, figures and a page. Knows no model and no config."""
