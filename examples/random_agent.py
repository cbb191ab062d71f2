"""A random agent in four bands at once: `python examples/random_agent.py`."""

import argparse

import gymnasium

import jamgym  # noqa: F401 - registers the environment

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--corpus", default="band")
parser.add_argument("--codec", default="spectral")
parser.add_argument("--reward", default="coherence")
parser.add_argument("--calls", type=int, default=60, help="chunks to play")
args = parser.parse_args()

envs = gymnasium.make_vec(
    "jamgym/Accompaniment-v0", num_envs=4, corpus=args.corpus, codec=args.codec, reward=args.reward, t_f=-25, k=5
)
observation, info = envs.reset(seed=0)
envs.action_space.seed(0)
total = 0.0
for _ in range(args.calls):
    observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    total += float(reward.mean())
print(f"Reward of {args.calls} random chunks: {total:.3f}")
envs.close()
