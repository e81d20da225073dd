"""Self-supervised methods by name. A new one is a file here and its line in `METHODS`.

Legend, in all files: B clips, T frames, F mel bands, D embedding features, P features of a projection, K keys.
"""

from models.methods.barlow_twins import BarlowTwins
from models.methods.byol import BYOL
from models.methods.moco import MoCo
from models.methods.simclr import SimCLR
from models.methods.simsiam import SimSiam
from models.methods.vicreg import VICReg

METHODS = {
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "byol": BYOL,
    "moco": MoCo,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
}
