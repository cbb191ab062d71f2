"""Conformance suites for third-party codecs, corpora, rewards and policies, and toys to test with.

Subclass a suite in a pytest file, say how to make the thing, and collect:

    class TestMyReward(RewardConformance):
        def make(self):
            return MyReward()
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jamgym.codec import Codec
from jamgym.corpus import INSTRUMENTS, SPLITS, Corpus
from jamgym.errors import CorpusError
from jamgym.learning_conformance import LearningRewardConformance
from jamgym.policy import Policy
from jamgym.reward import RewardModel, Windows
from jamgym.scoring import check_reward
from jamgym.toys import ToyCodec, ToyCorpus, ToyReward
from jamgym.vector_env import AccompanimentVectorEnv

__all__ = [
    "CodecConformance",
    "CorpusConformance",
    "LearningRewardConformance",
    "PolicyConformance",
    "RewardConformance",
    "ToyCodec",
    "ToyCorpus",
    "ToyReward",
]


def _music(rate: int, samples: int, rows: int = 2, seed: int = 0) -> np.ndarray:
    """Return `(rows, samples)` float32 of decaying tones with a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    tones = [np.sin(2 * np.pi * rng.uniform(100, 1500) * time) * np.exp(-2 * (time % 0.5)) for _ in range(rows)]
    return (0.3 * np.stack(tones) + 0.01 * rng.standard_normal((rows, samples))).astype(np.float32)


class CodecConformance:
    """Suite for `jamgym.codec.Codec`. `frames` is the length of the test clips."""

    frames = 20
    tolerance = 1e-4

    def make(self) -> Codec:
        """Return the codec under test."""
        raise NotImplementedError

    def _clip(self, codec: Codec) -> np.ndarray:
        return _music(codec.sample_rate, self.frames * codec.hop_samples)

    def test_attributes(self) -> None:
        """Sizes are positive, look-aheads are not negative, silence is a valid frame."""
        codec = self.make()
        assert isinstance(codec.name, str) and isinstance(codec.version, str)
        assert min(codec.sample_rate, codec.hop_samples, codec.num_codebooks, codec.cardinality) >= 1
        assert codec.lookahead_samples >= 0 and codec.decoder_lookahead_samples >= 0
        assert np.shape(codec.silence_codes) == (codec.num_codebooks,)
        assert np.min(codec.silence_codes) >= 0 and np.max(codec.silence_codes) < codec.cardinality

    def test_shapes_and_ranges(self) -> None:
        """Codes are int16 `(N, T, Q)` in range; audio is finite float32 of whole frames."""
        codec = self.make()
        codes = codec.encode(self._clip(codec))
        assert codes.shape == (2, self.frames, codec.num_codebooks) and codes.dtype == np.int16
        assert codes.min() >= 0 and codes.max() < codec.cardinality
        audio = codec.decode(codes)
        assert audio.shape == (2, self.frames * codec.hop_samples) and audio.dtype == np.float32
        assert np.isfinite(audio).all()

    def test_encoder_is_causal(self) -> None:
        """Audio beyond a frame's end and look-ahead does not change its codes."""
        codec = self.make()
        clip = self._clip(codec)
        codes = codec.encode(clip)
        kept = self.frames // 2
        changed = clip.copy()
        changed[:, kept * codec.hop_samples + codec.lookahead_samples :] *= -0.5
        assert np.array_equal(codec.encode(changed)[:, :kept], codes[:, :kept])

    def test_decoder_is_causal(self) -> None:
        """Codes beyond a frame and look-ahead do not change its audio."""
        codec = self.make()
        codes = codec.encode(self._clip(codec))
        kept = self.frames // 2
        ahead = -(-codec.decoder_lookahead_samples // codec.hop_samples)
        changed = codes.copy()
        changed[:, kept + ahead :] = (changed[:, kept + ahead :] + 1) % codec.cardinality
        end = kept * codec.hop_samples
        assert np.abs(codec.decode(changed)[:, :end] - codec.decode(codes)[:, :end]).max() <= self.tolerance

    def test_streams_equal_offline(self) -> None:
        """Blocks of any number of frames, put together, give what the whole clip gives."""
        codec = self.make()
        clip = self._clip(codec)
        codes, hop = codec.encode(clip), codec.hop_samples
        audio = codec.decode(codes)
        for block in (1, 3):
            encoder, decoder = codec.encoder(2), codec.decoder(2)
            edges = range(0, self.frames, block)
            streamed = [encoder.push(clip[:, e * hop : (e + block) * hop]) for e in edges]
            assert np.array_equal(np.concatenate(streamed, axis=1), codes)
            sound = [decoder.push(codes[:, e : e + block]) for e in edges]
            assert np.abs(np.concatenate(sound, axis=1) - audio).max() <= self.tolerance

    def test_some_rows_move_on_alone(self) -> None:
        """A push to some rows gives what these rows alone would give, and the others stand still."""
        codec = self.make()
        clip = self._clip(codec)
        codes, hop = codec.encode(clip), codec.hop_samples
        half = self.frames // 2
        encoder, decoder = codec.encoder(2), codec.decoder(2)
        one = np.array([1])
        early = encoder.push(clip[1:, : half * hop], one)
        sound = decoder.push(codes[1:, :half], one)
        rest = encoder.push(clip[:, : half * hop])[:1], decoder.push(codes[:, :half])[:1]
        encoder.push(clip[:1, half * hop :], np.array([0]))
        late = encoder.push(clip[:1, : half * hop], np.array([0]))
        assert np.array_equal(early[0], codes[1, :half]) and np.array_equal(rest[0][0], codes[0, :half])
        assert late.shape == (1, half, codec.num_codebooks)
        audio = codec.decode(codes)[:, : half * hop]
        assert np.abs(sound[0] - audio[1]).max() <= self.tolerance
        assert np.abs(rest[1][0] - audio[0]).max() <= self.tolerance

    def test_reset_clears_only_its_rows(self) -> None:
        """A reset row starts as if fresh; the other row goes on."""
        codec = self.make()
        codes, hop = codec.encode(self._clip(codec)), codec.hop_samples
        half = self.frames // 2
        decoder = codec.decoder(2)
        decoder.push(codes[:, :half])
        decoder.reset(np.array([True, False]))
        audio = decoder.push(codes[:, half:])
        fresh, whole = codec.decode(codes[:, half:]), codec.decode(codes)
        assert np.abs(audio[0] - fresh[0]).max() <= self.tolerance
        assert np.abs(audio[1] - whole[1, half * hop :]).max() <= self.tolerance


class CorpusConformance:
    """Suite for `jamgym.corpus.Corpus`. `songs` limits how many songs of each split are loaded."""

    songs = 2

    def make(self) -> Corpus:
        """Return the corpus under test."""
        raise NotImplementedError

    def _some(self, corpus: Corpus) -> list[str]:
        return [song_id for split in SPLITS for song_id in list(corpus.song_ids(split))[: self.songs]]

    def test_splits_are_stable_and_disjoint(self) -> None:
        """Two corpora list the same ids, and no song is in two splits."""
        corpus, again = self.make(), self.make()
        listed = [list(corpus.song_ids(split)) for split in SPLITS]
        assert listed == [list(again.song_ids(split)) for split in SPLITS]
        everything = [song_id for ids in listed for song_id in ids]
        assert everything and len(everything) == len(set(everything))

    def test_songs_are_well_formed(self) -> None:
        """Stems are finite mono float32 of one length with known classes and distinct names.

        Up to 1.1, because lossy formats and resampling overshoot full scale a little.
        """
        corpus = self.make()
        for song_id in self._some(corpus):
            song = corpus.load(song_id)
            assert song.id == song_id and song.sample_rate == corpus.sample_rate
            assert len({stem.name for stem in song.stems}) == len(song.stems) >= 1
            for stem in song.stems:
                assert stem.audio.dtype == np.float32 and stem.audio.ndim == 1
                assert len(stem.audio) == len(song.stems[0].audio) > 0
                assert np.isfinite(stem.audio).all() and np.abs(stem.audio).max() <= 1.1
                assert stem.instrument in INSTRUMENTS

    def test_truth_is_consistent(self) -> None:
        """Beats ascend, chords tile their span, roots belong to their chords' range."""
        corpus = self.make()
        for song_id in self._some(corpus):
            truth = corpus.load(song_id).truth
            if truth is None:
                continue
            assert (np.diff(truth.beats) > 0).all() and (np.diff(truth.downbeats) > 0).all()
            assert len(truth.chord_times) == len(truth.chord_roots) + 1 and (np.diff(truth.chord_times) > 0).all()
            assert truth.chord_pitch_classes.shape == (len(truth.chord_roots), 12)
            assert truth.chord_roots.min() >= 0 and truth.chord_roots.max() < 12

    def test_loading_is_deterministic(self) -> None:
        """The same id gives the same audio from two corpora."""
        song_id = self._some(self.make())[0]
        one, two = self.make().load(song_id), self.make().load(song_id)
        for a, b in zip(one.stems, two.stems, strict=True):
            assert a.name == b.name and np.array_equal(a.audio, b.audio)

    def test_unknown_song(self) -> None:
        """An unknown id raises `CorpusError`."""
        try:
            self.make().load("no such song anywhere")
        except CorpusError:
            return
        raise AssertionError("load() of an unknown id did not raise CorpusError")


class RewardConformance:
    """Suite for `jamgym.reward.RewardModel`."""

    sample_rate = 16_000
    tolerance = 1e-4

    def make(self) -> RewardModel:
        """Return the reward under test."""
        raise NotImplementedError

    def _windows(self, reward: RewardModel, seconds: float, rows: int = 4) -> Windows:
        samples = max(1, round(seconds * self.sample_rate))
        song = ToyCorpus(songs=1, seconds=max(seconds, 1.0) + 0.5).load("test-0000")
        heard = np.stack([_music(self.sample_rate, samples, 1, seed)[0] for seed in range(rows)])
        played = np.stack([_music(self.sample_rate, samples, 1, seed + 50)[0] for seed in range(rows)])
        played[0] = 0.0
        played[1] = np.random.default_rng(1).uniform(-1, 1, samples)
        assert song.truth is not None
        return Windows(
            heard=heard,
            played=played,
            sample_rate=self.sample_rate,
            target=heard[::-1].copy() if "target" in reward.needs else None,
            truth=(song.truth.crop(0.0, seconds),) * rows if "truth" in reward.needs else None,
        )

    def _pick(self, windows: Windows, order: list[int]) -> Windows:
        return Windows(
            heard=windows.heard[order],
            played=windows.played[order],
            sample_rate=windows.sample_rate,
            target=None if windows.target is None else windows.target[order],
            truth=None if windows.truth is None else tuple(windows.truth[j] for j in order),
        )

    def test_attributes(self) -> None:
        """Every part of the protocol is there and possible."""
        reward = self.make()
        check_reward(reward)
        assert reward.min_window_seconds <= reward.window_seconds and reward.range[0] < reward.range[1]

    def test_scores_are_finite_and_in_range(self) -> None:
        """One finite score per window, also for silence, noise, and the shortest window."""
        reward = self.make()
        for seconds in (reward.window_seconds, reward.min_window_seconds):
            windows = self._windows(reward, seconds)
            scores = np.asarray(reward.score(windows))
            assert scores.shape == (4,) and np.isfinite(scores).all()
            slack = self.tolerance
            assert scores.min() >= reward.range[0] - slack and scores.max() <= reward.range[1] + slack
            silent = self._pick(windows, [0, 0])
            both = Windows(np.zeros_like(silent.heard), silent.played, self.sample_rate, silent.target, silent.truth)
            assert np.isfinite(np.asarray(reward.score(both))).all()

    def test_windows_are_independent(self) -> None:
        """A window's score depends neither on its place in the batch nor on the rest of it."""
        reward = self.make()
        windows = self._windows(reward, reward.window_seconds)
        scores = np.asarray(reward.score(windows))
        order = [2, 0, 3, 1]
        assert np.abs(np.asarray(reward.score(self._pick(windows, order))) - scores[order]).max() <= self.tolerance
        assert np.abs(np.asarray(reward.score(self._pick(windows, [3]))) - scores[3]).max() <= self.tolerance

    def test_inputs_are_left_alone(self) -> None:
        """Scoring changes no array that it was given."""
        reward = self.make()
        windows = self._windows(reward, reward.window_seconds)
        heard, played = windows.heard.copy(), windows.played.copy()
        reward.score(windows)
        assert np.array_equal(heard, windows.heard) and np.array_equal(played, windows.played)


class PolicyConformance:
    """Suite for `jamgym.policy.Policy`; override `settings` for other environments."""

    rows = 3
    settings: dict[str, Any] = {"k": 5, "t_f": -5, "frames": 22}

    def make(self, env: AccompanimentVectorEnv) -> Policy:
        """Return the policy under test for `env`."""
        raise NotImplementedError

    def make_env(self) -> AccompanimentVectorEnv:
        """Return the environment to play in."""
        return AccompanimentVectorEnv(
            self.rows, corpus=ToyCorpus(songs=2, seconds=3.0), codec=ToyCodec(), reward=None, **self.settings
        )

    def test_acts_through_episodes(self) -> None:
        """Codes are int `(N, k, Q)` in range, through an episode's end and a partial reset."""
        env = self.make_env()
        policy = self.make(env)
        assert isinstance(policy.name, str) and isinstance(policy.privileged, bool)
        observation, _ = env.reset(seed=0)
        everyone = np.ones(self.rows, dtype=np.bool_)
        policy.reset(everyone, env.episodes)
        shape = (self.rows, env.simulation.chunk, env.codec.num_codebooks)
        for _ in range(int(env.simulation.calls.max()) + 2):
            before = {key: value.copy() for key, value in observation.items()}
            codes = policy.act(observation)
            assert codes.shape == shape and codes.dtype.kind in "iu"
            assert codes.min() >= 0 and codes.max() < env.codec.cardinality
            assert all(np.array_equal(before[key], observation[key]) for key in before), "observation changed"
            observation, _, terminated, truncated, _ = env.step(codes)
            over = terminated | truncated
            if over.any():
                policy.reset(over, env.episodes)
        first = np.zeros(self.rows, dtype=np.bool_)
        first[0] = True
        policy.reset(first, env.episodes)
