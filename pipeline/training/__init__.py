"""Fine-tuning of an adapter."""
