"""Plain PPO of RLlib: `pip install 'jamgym[rllib]'`, then `python examples/rllib_ppo.py`.

RLlib steps the native vector environment, in mode "NextStep", and sees codes as numbers, so this checks a set-up.
To learn music, start from a pretrained decoder: `jamgym finetune`.
"""

import argparse

import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.tune.registry import register_env

from jamgym.wrappers.rllib import make_env

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--corpus", default="band")
parser.add_argument("--codec", default="spectral")
parser.add_argument("--reward", default="coherence")
parser.add_argument("--iterations", type=int, default=5)
parser.add_argument("--runners", type=int, default=0, help="processes that play; 0 plays in this one")
parser.add_argument("--steps", type=int, default=640, help="calls per iteration")
args = parser.parse_args()

settings = dict(
    corpus=args.corpus, codec=args.codec, reward=args.reward, t_f=-25, k=5, frames=100, max_songs=20
) | dict(observation="window", window=25)

ray.init(include_dashboard=False, log_to_driver=False, num_cpus=args.runners + 1)
register_env("jamgym", make_env)
config = (
    PPOConfig()
    .environment("jamgym", env_config=settings)
    .env_runners(
        num_env_runners=args.runners,
        num_envs_per_env_runner=8,
        gym_env_vectorize_mode="vector_entry_point",  # take make_env's vector environment as it is
        # One vector of numbers near 1 out of the dictionary; codes go up to 1023.
        env_to_module_connector=lambda env=None, spaces=None, device=None: [FlattenObservations(), MeanStdFilter()],
    )
    .training(train_batch_size_per_learner=args.steps, minibatch_size=min(args.steps, 160), num_epochs=4, gamma=0.95)
    .debugging(seed=0, log_level="ERROR")
)
algorithm = config.build_algo()
for iteration in range(args.iterations):
    found = algorithm.train()["env_runners"]
    print(
        f"iteration {iteration + 1}: {found['num_env_steps_sampled_lifetime']:.0f} steps; "
        f"mean score of the last episodes: {found['episode_return_mean']:.3f}"
    )
algorithm.stop()
ray.shutdown()
