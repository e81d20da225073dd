"""The README.md of an export: a Hugging Face model card."""

import yaml

from utils.deploy.encoder import LONGEST
from utils.deploy.loader import Needed

FOREIGN = """from speechbrain.inference.interfaces import foreign_class

encoder = foreign_class(source="{here}", pymodule_file="sound_encoder.py", classname="ExportedEncoder")
vector = encoder.encode_file("siren.wav")  # [1, 1, {dim}]
"""
OWN = """from speechbrain.inference.classifiers import EncoderClassifier

encoder = EncoderClassifier.from_hparams(source="{here}")  # SpeechBrain's own classes alone
vector = encoder.encode_batch(0.9 * samples / abs(samples).max())  # [1, 1, {dim}]
"""
LABELS = """_, log_probability, _, (name,) = encoder.classify_file("siren.wav")
"""
ONNX = """import onnxruntime

session = onnxruntime.InferenceSession("{here}/model.onnx")
{outputs} = session.run(None, {{"waveform": samples}})  # float32 [sounds, samples] at {rate} Hz
"""


def write_card(config: dict, needed: Needed | bool, with_onnx: bool) -> str:
    """Return the text of a model card.

    Parameters
    ----------
    config
        As config.json has it.
    needed
        What SpeechBrain needs to load it; False if it has no files for SpeechBrain.
    with_onnx
        Whether the export has the ONNX graph.
    """
    name, classes = config["name"], config["classifier"].get("classes")
    sections = [
        f"---\n{yaml.safe_dump(_metadata(config, with_onnx), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _about(config),
        "## Trained on",
        _training(config["trained"]),
        "## Results",
        _results(config),
        "## Use",
        *_use(config, needed, with_onnx),
        "## Limits",
        _limits(config, classes),
        "## Files",
        _files(config),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(config, with_onnx):
    classifies = bool(config["classifier"])
    tags = ["audio", "sound-classification", "continual-learning", "self-supervised-learning", "speechbrain"]
    found = {
        "license": config["license"],
        "library_name": "speechbrain",
        "pipeline_tag": "audio-classification" if classifies else "feature-extraction",
        "tags": [*tags, *(["onnx"] if with_onnx else []), config["encoder"]["name"]],
    }
    if result := config["results"]:
        task = {"type": "audio-classification", "name": "Audio Classification"}
        dataset = {"type": result["dataset"].lower().replace(" ", "-"), "name": result["dataset"], "split": "test"}
        metric = {"type": "accuracy", "name": f"accuracy ({result['protocol']})", "value": result["accuracy"]}
        result = {"task": task, "dataset": dataset, "metrics": [metric]}
        found |= {"metrics": ["accuracy"], "model-index": [{"name": config["name"], "results": [result]}]}
    return found


def _about(config):
    encoder, front_end = config["encoder"], config["front_end"]
    norm = "the mean of each clip is subtracted" if front_end["mean_norm"] else "not normalised"
    classes = config["classifier"].get("classes", [])
    told = f", and a linear classifier of {len(classes)} classes" if classes else ""
    return (
        f"A sound encoder ({encoder['name']}): {config['sample_rate'] / 1000:g} kHz mono in, an embedding of "
        f"{encoder['emb_dim']} features out{told}. Its front end is {front_end['name']} with {encoder['n_mels']} mel "
        f"bands ({norm}). Each sound is scaled to a peak of {config['peak']}. It was trained task by task, as in "
        "[Learning Representations for New Sound Classes With Continual Self-Supervised "
        "Learning](https://arxiv.org/abs/2205.07390)."
    )


def _training(trained):
    lines = [f"Data set: {trained['dataset']}. Task by task, without going back except for what replay keeps:", ""]
    lines += [f"{t}. {', '.join(names)}" for t, names in enumerate(trained["tasks"])]
    if trained["start"]:
        lines += ["", f"It began with {trained['start']}."]
    settings = ", ".join(f"`{key}={value}`" for key, value in trained["settings"].items())
    return "\n".join(
        [*lines, "", f"Trained by `{trained['script']}`: {settings}. Digest of the clips: {trained['data']}."]
    )


def _results(config):
    result = config["results"]
    if not result:
        return "Not evaluated here."
    rows = [("this encoder", result["accuracy"], result["interval"]), ("random weights (the floor)", *result["floor"])]
    lines = ["| | accuracy | 95 % interval |", "|---|---:|---|"]
    lines += [f"| {name} | {100 * value:.1f} % | {_interval(interval)} |" for name, value, interval in rows]
    told = (
        f"{result['dataset']}, protocol {result['protocol']}, probe {result['probe']}: accuracy on {result['clips']} "
        "test clips, the mean over tasks. The floor is the same evaluation of an encoder that was never trained: what "
        "the encoder learned is what it has above the floor. Intervals are by bootstrap over test clips."
    )
    return "\n".join([told, "", *lines])


def _interval(interval):
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %" if interval else "unknown"


def _use(config, needed, with_onnx):
    given = {"here": "FOLDER", "dim": config["encoder"]["emb_dim"], "rate": config["sample_rate"]}
    classifies = bool(config["classifier"])
    parts = ["`FOLDER` is this folder, or the name of this repository where a library downloads it."]
    if needed:
        code = (FOREIGN + (LABELS if classifies else "")).format(**given)
        parts += [f"With `pip install {' '.join(needed.packages)}`:", f"```python\n{code}```"]
        parts += [] if needed.module else [f"```python\n{OWN.format(**given)}```"]
        parts.append(
            "> This loads a YAML, which can run code, and `foreign_class` runs `sound_encoder.py`: read both first if "
            "you don't trust their origin. `model.safetensors` and `config.json` run none."
        )
    if with_onnx:
        code = ONNX.format(outputs="embedding, logits" if classifies else "(embedding,)", **given)
        parts += ["Without torch, with `pip install onnxruntime`:", f"```python\n{code}```"]
    parts.append(
        "With the code that trained it, `load_encoder` of `utils.embed` reads `config.json` and `model.safetensors`, "
        "and takes files of any sample rate. `--pretrained_weights=FOLDER` and `--start_from=FOLDER` train it further."
    )
    return parts


def _limits(config, classes):
    rate = config["sample_rate"]
    lines = [
        f"- Samples must be at {rate} Hz. At another rate the embeddings are wrong without an error. Functions that "
        "take a file resample it.",
        "- Scale each sound to the peak above where a function doesn't do so: quiet sounds otherwise lose their faint "
        "parts.",
        f"- A sound shorter than 0.1 s has too few frames (Cnn14 by SpeechBrain's class: 0.32 s). `load_encoder` "
        f"averages the embeddings of pieces of at most {LONGEST:g} s; the others pass a sound at once.",
        "- Resamplers differ: with a file of another rate, embeddings by different programs differ a little.",
    ]
    if classes:
        lines.append(f"- The classifier knows {', '.join(classes)}, and puts every sound into one of these.")
    return "\n".join(lines)


def _files(config):
    told = {
        "model.safetensors": "weights",
        "model.ckpt": "`model.safetensors` under the name that SpeechBrain looks for; no pickle",
        "model.onnx": "the whole path from waveform to embedding",
    }
    lines = [f"- `{name}`: SHA-256 {digest}{f' ({told[name]})' if name in told else ''}"
             for name, digest in config["sha256"].items()]  # fmt: skip
    return "\n".join([*lines, "- `config.json`: what all of this is, and the licence (`license`) for you to set"])
