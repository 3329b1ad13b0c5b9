from weightspace import checks
from weightspace import families as families
from weightspace.face import build_zoo as build_zoo
from weightspace.face import embed as embed
from weightspace.face import fixed_points as fixed_points
from weightspace.face import load_encoder as load_encoder
from weightspace.face import measure as measure
from weightspace.face import open_zoo as open_zoo
from weightspace.face import predict as predict
from weightspace.face import to_data as to_data
from weightspace.face import trajectories as trajectories
from weightspace.models import from_torch as from_torch
from weightspace.rollout import rollout as rollout
from weightspace.transformer import Embedder as Embedder

__version__: str
check_encoder = checks.assert_encoder
check_family = checks.assert_family
