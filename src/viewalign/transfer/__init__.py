"""From a pretrained encoder to what people need it for."""
