"""Judge saved encoders: freeze each, train a linear classifier on its embeddings, fill the accuracy table.

Linear and subset linear evaluation (LEP, SLEP) of "Learning Representations for New Sound Classes With Continual
Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390), section III.

    python linclf_train.py hparams/us8k/linclf_train.yaml --data_folder=UrbanSound8K --output_base=results/linclf \\
        --ssl_checkpoints_dir=results/simclr+seed_2022/save --linclf_train_type=seen --experiment_name=simclr-lep

Writes accuracy_table.csv, metrics.json, per-class accuracy, the confusion matrix and figures to <output_base>/
<experiment_name>+seed_<seed>, each beside the same evaluation of a random-weights encoder, the floor. Keys that matter:
linclf_train_type (seen, subset, buffer, full), replay_num_keep, ssl_checkpoints_dir, number_of_epochs, standardise, and
those that name the encoder's architecture and front end, which must be the ones it was trained with (encoder, emb_dim,
emb_norm_type, front_end, n_mels, mean_norm, sample_rate). With full, any number of encoders of any data set.

Each clip passes each encoder once; embeddings stay beside the checkpoints, so the next evaluation takes seconds.
"""

import copy

import speechbrain as sb

from datasets.prepare import DATA_KEYS, prepare
from utils.evaluation.probe import Evaluation, ProbeBrain, evaluate_encoders
from utils.evaluation.saved import check_same_encoder, find_checkpoints
from utils.results.save import save_results
from utils.run.arguments import parse_arguments
from utils.run.config import JUDGING_KEYS, load_config
from utils.run.exits import user_errors
from utils.run.folder import LOG_CONFIG, check_run_folder, open_run_folder, run_settings
from utils.run.processes import one_process_only
from utils.run.record import save_versions


class LinearProbe(ProbeBrain):
    """One linear layer on frozen embeddings. Legend: B clips, D embedding features, C classes."""

    def compute_forward(self, batch, stage):
        """Logits of a batch of embeddings."""
        vectors, _ = batch
        return self.modules.classifier(vectors.to(self.device))  # [B, D] -> [B, C]

    def compute_objectives(self, predictions, batch, stage):
        """Cross entropy, a scalar."""
        labels = batch[1].to(self.device)
        if stage != sb.Stage.TRAIN:
            self.count(predictions, labels)
        return self.hparams.loss(predictions, labels)


if __name__ == "__main__":
    with user_errors():
        # Command line and YAML to objects; the encoders that are to be judged.
        one_process_only("linclf_train.py")
        hparams_file, run_opts, overrides = parse_arguments(__doc__)
        hparams = load_config(hparams_file, overrides, run_opts, JUDGING_KEYS)
        settings = run_settings(hparams_file, overrides, run_opts, hparams)
        encoders = find_checkpoints(hparams["ssl_checkpoints_dir"])
        trained = check_same_encoder(encoders[0], settings)
        check_run_folder(hparams["output_folder"], settings, hparams["overwrite"])

        # Metadata to a table of clips with tasks; their samples in the store.
        data = prepare(*(hparams[key] for key in DATA_KEYS))

        random_weights = copy.deepcopy(hparams["modules"]["embedding_model"].state_dict())
        Evaluation(LinearProbe, hparams, run_opts, data).check(encoders)

        # All input is good: the run's folder, with its settings and versions.
        open_run_folder(hparams["output_folder"], settings, hparams["overwrite"])
        sb.create_experiment_directory(
            hparams["output_folder"], hparams_file, overrides, log_config=LOG_CONFIG, save_env_desc=False
        )
        save_versions(hparams, run_opts, data)

        # Every saved encoder and, by the same protocol, one with random weights.
        results = evaluate_encoders(LinearProbe, hparams, run_opts, data, encoders, random_weights)
        save_results(results, hparams, data, trained, settings, encoders)
