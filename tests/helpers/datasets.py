"""Small trees in the published layouts of TAU Urban Acoustic Scenes 2019 and VGGSound."""

import csv

import numpy as np
import soundfile

from datasets import vgg

# TAU Urban Acoustic Scenes 2019

SCENES = [
    "airport", "bus", "metro", "metro_station", "park",
    "public_square", "shopping_mall", "street_pedestrian", "street_traffic", "tram",
]  # fmt: skip
CITIES = ("barcelona", "helsinki", "lisbon", "milan")


def tau19_names(locations, segments=3, first=0):
    """File names as published; `locations` is a number by scene, and locations are numbered from `first`."""
    made, place = [], first
    for scene, count in locations.items():
        for k in range(count):
            city = CITIES[k % len(CITIES)]
            made += [f"audio/{scene}-{city}-{place}-{1000 * place + segment}-a.wav" for segment in range(segments)]
            place += 1
    return made


def scene_of(name):
    return name.removeprefix("audio/").split("-")[0]


def write_tau19_file(folder, name, clips, labels=True):
    setup = folder / "evaluation_setup"
    setup.mkdir(parents=True, exist_ok=True)
    lines = [f"{clip}\t{scene_of(clip)}" if labels else clip for clip in clips]
    (setup / name).write_text("\n".join(["filename\tscene_label" if labels else "filename", *lines]) + "\n")


def write_tau19(folder, train=None, test=None):
    """Write the metadata, and an empty audio folder, which is all that `load` looks at; the clips' names."""
    train = tau19_names(dict.fromkeys(SCENES, 5)) if train is None else train
    test = tau19_names(dict.fromkeys(SCENES, 2), first=100) if test is None else test
    (folder / "audio").mkdir(parents=True)
    write_tau19_file(folder, "fold1_train.csv", train)
    write_tau19_file(folder, "fold1_test.csv", test, labels=False)
    write_tau19_file(folder, "fold1_evaluate.csv", test)
    return train, test


def write_tau19_audio(folder, clips):
    """0.1 s of 48 kHz, 24 bit, stereo each: a tone whose pitch the clip's place decides, equal in both channels."""
    t = np.arange(4800) / 48000
    for place, clip in enumerate(clips):
        wav = 0.4 * np.sin(2 * np.pi * (200 + 10 * place) * t)
        soundfile.write(folder / clip, np.stack([wav, wav], axis=1), 48000, subtype="PCM_24")


# VGGSound

FEW = ("dog barking", "playing violin, fiddle", "police car (siren)", "zebra braying")


def vgg_clips(classes=FEW, n_train=15, n_test=11):
    """Rows as in vggsound.csv: id, start second, label, split."""
    made, names = [], vgg.class_names()
    for name in classes:
        number = names.index(name) if name in names else 999
        for k in range(n_train + n_test):
            made.append((f"-_id{number:03d}{k:04d}", (7 * k) % 500, name, "train" if k < n_train else "test"))
    return made


def vgg_file(clip, extension=".wav"):
    return f"{clip[0]}_{clip[1]:06d}{extension}"


def write_vgg(folder, clips, layout="csv", there=None, extension=".wav", rename=str, audio="", write_clip=None):
    """Write the metadata of `clips` and the files of those that are `there`; `rename` makes a class a folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "csv":
        with open(folder / "vggsound.csv", "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(clips)
    for clip in clips if there is None else there:
        place = folder / audio if layout == "csv" else folder / clip[3] / rename(clip[2])
        place.mkdir(parents=True, exist_ok=True)
        (write_clip or (lambda path, clip: path.touch()))(place / vgg_file(clip, extension), clip)
    return folder


def vgg_pitch(name):
    return 300 + 5 * int(name[-4:])


def write_vgg_tone(path, clip):
    """0.1 s at 16 kHz of a tone whose pitch the clip's id decides."""
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * vgg_pitch(clip[0]) * np.arange(1600) / 16000), 16000)
