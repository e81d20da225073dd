"""Evaluate saved encoders: freeze each, train a probe on its embeddings, fill the accuracy table.

Linear and subset linear evaluation (LEP, SLEP) of "Learning Representations for New Sound Classes With Continual
Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390), section III.

    python linclf_train.py hparams/us8k/linclf_train.yaml --data_folder=UrbanSound8K --output_base=results/linclf \\
        --ssl_checkpoints_dir=results/simclr+seed_2022/save --linclf_train_type=seen --experiment_name=simclr-lep

Writes accuracy_table.csv, metrics.json, predictions.csv, per-class accuracy, the confusion matrix and figures to
<output_base>/<experiment_name>+seed_<seed>, with the same for an encoder of random weights, the floor. Main keys:
linclf_train_type (seen, subset, buffer, full), replay_num_keep, ssl_checkpoints_dir, probe (linear, logistic, knn, ncm,
finetune), few_shot, number_of_epochs, standardise. Encoder and front end come from the run of ssl_checkpoints_dir. With
full, it takes any number of encoders, trained on any data set.

Each encoder embeds each clip once. The embeddings are cached beside the checkpoints, so another evaluation takes
seconds.
"""

import copy

import speechbrain as sb

from utils.evaluation.judge import Evaluation, evaluate_encoders
from utils.evaluation.probes import ProbeBrain
from utils.evaluation.saved import as_trained, find_checkpoints, numbered_by
from utils.evaluation.together import embed_together
from utils.results.save import save_results
from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.training.runs import settings_of


class LinearProbe(ProbeBrain):
    """One linear layer on frozen embeddings. Legend: B clips, D embedding features, C classes."""

    def compute_forward(self, batch, stage):
        """Compute the logits of a batch of embeddings."""
        vectors, _ = batch
        return self.modules.classifier(vectors.to(self.device))  # [B, D] -> [B, C]

    def compute_objectives(self, predictions, batch, stage):
        """Compute the cross entropy, a scalar."""
        labels = batch[1].to(self.device)
        if stage != sb.Stage.TRAIN:
            self.count(predictions, labels)
        return self.hparams.loss(predictions, labels)


if __name__ == "__main__":
    with user_errors():
        # Parse the command line, build the YAML's objects, take encoder and front end from ssl_checkpoints_dir's run.
        run = Run(__doc__, LinearProbe, adapt=as_trained)
        encoders = find_checkpoints(run.hparams["ssl_checkpoints_dir"])
        run.read_data(numbered_by(encoders[0], run.settings))  # table of clips with tasks, audio store
        evaluation = Evaluation(LinearProbe, run)
        random_weights = copy.deepcopy(run.hparams["modules"]["embedding_model"].state_dict())
        evaluation.check(encoders)
        run.open()  # once all input is checked, make or open the run folder
        embedded = embed_together(evaluation, encoders, random_weights)  # under torchrun, where all but one end here
        # Evaluate every saved encoder and, by the same protocol, one with random weights.
        results = evaluate_encoders(evaluation, encoders, random_weights)
        results["n_embedded"] += embedded
        save_results(results, run, settings_of(encoders[0]), encoders)
