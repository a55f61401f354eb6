"""Fine-tuning over the backend protocol: frames, losses, the Lightning module, a run."""
