"""Plain PPO of stable-baselines3, no jamgym_agents: `python examples/plain_sb3.py`.

It shows that the environment is an ordinary one. To learn music, start from a pretrained decoder: `jamgym finetune`.
"""

import argparse

import gymnasium
from stable_baselines3 import PPO

import jamgym  # noqa: F401 - registers the environment

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--corpus", default="band")
parser.add_argument("--codec", default="spectral")
parser.add_argument("--reward", default="coherence")
parser.add_argument("--steps", type=int, default=2000)
args = parser.parse_args()

env = gymnasium.make(
    "jamgym/Accompaniment-v0",
    corpus=args.corpus,
    codec=args.codec,
    reward=args.reward,
    t_f=-25,
    k=5,
    frames=100,
    observation="window",
    window=25,
    max_songs=20,
)
model = PPO("MultiInputPolicy", env, n_steps=100, batch_size=50, n_epochs=2, seed=0, device="cpu")
model.learn(args.steps)
scores = [episode["r"] for episode in model.ep_info_buffer or ()]
print(f"{model.num_timesteps} steps; mean reward of the last {len(scores)} episodes: {sum(scores) / len(scores):.3f}")
