"""What makes a target, a weighting or a schedule easy or hard to learn: closed forms, bounds, and a trained model's."""
