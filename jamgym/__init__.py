"""jamgym: a Gymnasium environment for agents that play along with music they are still hearing.

Importing the package registers `jamgym/Accompaniment-v0`.
"""

from gymnasium.envs import registration as _registration

from jamgym.accompaniment_env import AccompanimentEnv
from jamgym.codec import Codec
from jamgym.corpus import Corpus
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import JamgymError
from jamgym.policy import Policy
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel
from jamgym.settings import EnvSettings
from jamgym.timing import Timing
from jamgym.vector_env import AccompanimentVectorEnv

__version__ = "0.1.0"

__all__ = [
    "AccompanimentEnv",
    "AccompanimentVectorEnv",
    "Codec",
    "Corpus",
    "EnvSettings",
    "Episode",
    "EpisodeRecord",
    "EpisodeSource",
    "JamgymError",
    "Policy",
    "RewardModel",
    "Timing",
    "__version__",
]

ENV_ID = "jamgym/Accompaniment-v0"

if ENV_ID not in _registration.registry:
    _registration.register(
        id=ENV_ID,
        entry_point="jamgym.accompaniment_env:AccompanimentEnv",
        vector_entry_point="jamgym.vector_env:AccompanimentVectorEnv",
    )
