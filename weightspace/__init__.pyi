from weightspace import checks
from weightspace import families as families
from weightspace.exchange.opened import open_zoo as open_zoo
from weightspace.face import embed as embed
from weightspace.face import from_torch as from_torch
from weightspace.face import load_encoder as load_encoder
from weightspace.face import measure as measure
from weightspace.face import predict as predict
from weightspace.face import to_data as to_data
from weightspace.rollout import rollout as rollout
from weightspace.transformer import Embedder as Embedder

__version__: str
check_encoder = checks.assert_encoder
check_family = checks.assert_family
