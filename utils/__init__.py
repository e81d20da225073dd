"""What runs an experiment: configuration, the task loop, Brain bases, checkpoints, embeddings, metrics, figures."""

import logging

# SpeechBrain warns at import that its own picture logger lacks torchvision, which nothing here uses.
logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in str(record.msg))
