"""The reward pool with real actors and a tiny Qwen-VL."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from omr_ray.config.rewards import PreferenceModel
from omr_ray.config.run import RunConfig
from omr_ray.loading import reward_model_from
from omr_ray.types import Dialogue, Rollout, Round, Trajectory, UserError
from omr_ray.vlm.image_reward import ImageReward
from omr_ray.workers.pool import RewardPool
from omr_ray.workers.reward import RewardWorker
from tests.tiny_image_reward import make_tiny_image_reward
from tests.tiny_qwen import make_tiny_qwen

pytestmark = pytest.mark.timeout(900)  # a busy machine loads models slowly

NONE = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_qwen(tmp_path_factory.mktemp("qwen")))


def config(model, workers=1, batch_size=4, **rewards) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "rewards": {"preference": {"path": model, "batch_size": batch_size}, **rewards},
            "workers": {"reward": {"count": workers, "num_cpus": 0.5}, "timeout_s": 240, "start_timeout_s": 240},
        }
    )


def rollout(name: str, rounds: int, siblings: int, rng: np.random.Generator) -> Rollout:
    dialogue = Dialogue(
        id=name, intent="x", rounds=tuple(Round(index=r, utterance="u", prompt=f"{r} {name}") for r in range(1, rounds + 1))
    )

    def trajectory(round_: int, sibling: int) -> Trajectory:
        return Trajectory(
            dialogue_id=name, round=round_, sibling=sibling, seed=0, policy_version=0, prompt=f"{round_} {name}", prompt_ids=NONE,
            latents=NONE, next_latents=NONE, timesteps=NONE, previous_timesteps=NONE, log_probs=NONE, features=NONE,
            image=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        )  # fmt: skip

    return Rollout(dialogue=dialogue, trajectories=tuple(tuple(trajectory(r, g) for g in range(siblings)) for r in range(1, rounds + 1)))


def test_scores_come_back_in_place_whoever_made_them(model):
    rng = np.random.default_rng(0)
    rollouts = [rollout("coat", 2, 3, rng), rollout("hat", 1, 3, rng), rollout("dress in a meadow", 3, 1, rng)]
    one, two = RewardPool(config(model)), RewardPool(config(model, workers=2))
    scores = one.preferences(rollouts)
    assert [[len(siblings) for siblings in rounds] for rounds in scores] == [[3, 3], [3], [1, 1, 1]]
    assert scores == two.preferences(rollouts)  # three batches of four either way

    scorer = reward_model_from(PreferenceModel(path=model))
    for rounds, made in zip(scores, rollouts, strict=True):
        for row, siblings in zip(rounds, made.trajectories, strict=True):
            alone = [scorer.score(t.image[None], [t.prompt]).item() for t in siblings]
            np.testing.assert_allclose(row, alone, atol=1e-5)
    assert len({score for rounds in scores for row in rounds for score in row}) == 12
    assert two.metrics()["reward/retries"] == 0
    assert one.preferences([]) == []
    one.close(), two.close()


def test_a_score_that_is_not_finite_is_missing():
    class Broken:
        def score(self, images, prompts, batch_size):
            return torch.tensor([1.5, float("nan"), float("inf")])

    worker = RewardWorker(config("unused"))
    worker._model = Broken()
    assert worker.score(np.zeros((1, 8, 8, 3), np.uint8), [0, 0, 0], ["a", "b", "c"])[0] == [1.5, None, None]


def test_a_pickled_reward_model_is_the_users_fault(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    pool = RewardPool(config(str(tmp_path)))
    with pytest.raises(UserError, match="safetensors"):
        pool.preferences([rollout("coat", 1, 1, np.random.default_rng(0))])
    pool.close()


def term(name: str, **scorer) -> dict:
    return {"name": name, "weight": 1.0, "scorer": scorer}


def brightness(images, prompts):
    """A user's reward, of an image and of its prompt; the workers import it from this file."""
    return [image.mean() + len(prompt) for image, prompt in zip(images, prompts, strict=True)]


def only_hats(images, prompts):
    if not all("hat" in prompt for prompt in prompts):
        raise RuntimeError("never heard of it")
    return [0.5] * len(prompts)


@contextmanager
def scoring_server(calls: list):
    """Scores an image by its first pixel; the first request of all is turned away."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls.append(body["prompts"])
            pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(image)))) for image in body["images"]]
            content = json.dumps({"scores": [float(picture[0, 0, 0]) for picture in pictures]}).encode()
            self.send_response(503 if len(calls) == 1 else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args): ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/"
    finally:
        listening.shutdown()
        thread.join(10)
        listening.server_close()


def test_terms_of_users_are_scored_beside_the_preference(model, tmp_path):
    rng = np.random.default_rng(1)
    rollouts = [rollout("coat", 2, 3, rng), rollout("hat", 1, 3, rng)]
    calls: list = []
    with scoring_server(calls) as url:
        terms = [
            term("bright", type="function", path="test_reward_pool:brightness", batch_size=2),
            term("hats", type="function", path="test_reward_pool:only_hats", batch_size=3),
            term("far", type="http", url=url, batch_size=4),
            term("blip", type="imagereward", path=str(make_tiny_image_reward(tmp_path))),
        ]
        pool = RewardPool(config(model, workers=2, terms=terms))
        pool.ready()
        made = pool.terms(rollouts)
        pool.close()
    assert [list(scores) for scores in made] == [["mutual_information", "bright", "hats", "far", "blip"]] * 2
    assert sorted(map(len, calls)) == [3, 3, 3, 3]  # nine images in batches of at most four, and the one that was turned away
    blip = ImageReward.load(tmp_path)
    for scores, source in zip(made, rollouts, strict=True):
        for r, siblings in enumerate(source.trajectories):
            assert scores["bright"][r] == [t.image.mean() + len(t.prompt) for t in siblings]
            assert scores["far"][r] == [float(t.image[0, 0, 0]) for t in siblings]
            alone = [blip.score(t.image[None], [t.prompt]).item() for t in siblings]
            np.testing.assert_allclose(scores["blip"][r], alone, atol=1e-4)
    assert made[0]["hats"] == [[None] * 3] * 2 and made[1]["hats"] == [[0.5] * 3]  # a share of three is one round here

    plain = RewardPool(config(model, workers=2))
    assert [scores["mutual_information"] for scores in made] == plain.preferences(rollouts)
    plain.close()


def test_infonce_lets_the_dialogues_of_a_round_compete(model):
    rng = np.random.default_rng(2)
    rollouts = [rollout("coat", 2, 2, rng), rollout("hat", 1, 2, rng), rollout("dress in a meadow", 2, 2, rng)]
    settings = {"mutual_information": {"type": "infonce"}, "batch_size": 5}  # 26 pairs: six shares
    one, two = (RewardPool(config(model, workers=workers, **settings)) for workers in (1, 2))
    made = one.terms(rollouts)
    assert made == two.terms(rollouts)  # batches of five either way
    one.close(), two.close()

    scorer = reward_model_from(PreferenceModel(path=model))
    for r, group in ((0, rollouts), (1, [rollouts[0], rollouts[2]])):
        for g in range(2):
            samples = [member.trajectories[r][g] for member in group]
            matrix = np.array([[scorer.score(t.image[None], [row.prompt]).item() for t in samples] for row in samples])
            wanted = np.log(len(group)) + np.log(np.exp(matrix.diagonal()) / np.exp(matrix).sum(1))
            found = [made[rollouts.index(member)]["mutual_information"][r][g] for member in group]
            np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"type": "function", "path": "test_reward_pool:absent"}, "module test_reward_pool has no function absent"),
        ({"type": "imagereward", "path": "/absent"}, "no such model directory"),
        ({"type": "http", "url": "http://host:port/"}, "cannot be read"),
    ],
)
def test_a_scorer_that_cannot_be_loaded_is_reported_before_anything_is_scored(model, scorer, message):
    pool = RewardPool(config(model, terms=[term("mine", **scorer)]))
    with pytest.raises(UserError, match=message):
        pool.ready()
    pool.close()
