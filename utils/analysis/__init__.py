"""Analysis of what the task-wise encoders make of the same clips: maps of their embeddings, drift, likeness."""
