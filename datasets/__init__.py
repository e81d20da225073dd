"""What touches audio and manifests: one module per dataset, tasks, selection, audio store, batches, labels."""
