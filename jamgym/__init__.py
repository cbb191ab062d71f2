"""jamgym: a Gymnasium environment for agents that play along with music they are still hearing.

Importing the package registers `jamgym/Accompaniment-v0` (simulated time) and
`jamgym/AccompanimentLive-v0` (real time).
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
LIVE_ENV_ID = "jamgym/AccompanimentLive-v0"

for _id, _clock in ((ENV_ID, "simulated"), (LIVE_ENV_ID, "measured")):
    if _id not in _registration.registry:
        _registration.register(
            id=_id,
            entry_point="jamgym.accompaniment_env:AccompanimentEnv",
            vector_entry_point="jamgym.vector_env:AccompanimentVectorEnv",
            # What a real clock measures is not the same twice, and checkers have to know.
            nondeterministic=_clock != "simulated",
            kwargs={} if _clock == "simulated" else {"clock": _clock},
        )
