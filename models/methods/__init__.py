"""Self-supervised methods by name. A new one is a file here and its line in `METHODS`.

Legend, in all files: B clips, T frames, F mel bands, D embedding features.
"""

from models.methods.simclr import SimCLR
from models.methods.simsiam import SimSiam

METHODS = {
    "simclr": SimCLR,
    "simsiam": SimSiam,
}
