"""What judges an encoder: saved encoders, their embeddings, probes, a classifier's own test."""
