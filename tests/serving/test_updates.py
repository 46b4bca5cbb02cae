"""Votes become versions of adapters: on the real store, with a tiny Stable Diffusion that paints and learns."""

import time

import numpy as np
import pytest

from omr_ray.config.serve import ServeConfig
from omr_ray.dialogue.engine import Commission
from omr_ray.serving.adapters import listed
from omr_ray.serving.painter import Painter
from omr_ray.serving.pictures import PictureStore
from omr_ray.serving.store import sessions, updates, votes
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.sessions import NotFound
from omr_ray.serving.updates import Updater
from omr_ray.serving.versions import Versions
from omr_ray.types import Unavailable, UserError
from tests.postgres_server import postgres_server
from tests.tiny import make_tiny_sd

pytestmark = pytest.mark.timeout(900)
LIKED, DISLIKED = "a red dress", "a blue coat"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_sd(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture
def config(model, tmp_path):
    return ServeConfig.model_validate(
        {
            "model": {"kind": "diffusers", "path": str(model)},
            "lora": {"rank": 2, "alpha": 2},
            "painting": {"steps": 3},
            "updates": {"votes": 10, "held_out": 0.3, "learning_rate": 3e-3, "beta": 300, "batch": 8},
            "database": f"sqlite:///{tmp_path}/service.db",
            "images": str(tmp_path / "images"),
            "adapters": str(tmp_path / "adapters"),
        }
    )


@pytest.fixture
def database(config):
    found = Database(config.database)
    found.migrate()
    yield found
    found.close()


class Studio:
    """Paints two rounds of a session and votes on them, as the service would have it stored."""

    def __init__(self, config, database):
        self.painter, self.pictures, self.database = Painter(config, "cpu", 1), PictureStore(config.images), database

    def vote(self, number, owner="ann", choice="left", edit=False):
        with self.database.write() as transaction:
            id = sessions.create(transaction, owner, "t").session.id
            self._round(transaction, id, 1, LIKED, 2 * number, None)
            self._round(transaction, id, 2, DISLIKED, 2 * number + 1, 1 if edit else None)
            votes.vote(transaction, owner, id, left=1, right=2, choice=choice)
        return id

    def _round(self, transaction, id, round_, prompt, seed, parent):
        mode = "edit" if parent else "scratch"
        before = sessions.change(transaction, id, lambda s: s.start(prompt, seed=seed, strength=0.7, mode=mode)).session
        address = before.round(parent).image if parent else None
        commission = Commission(
            prompt=prompt,
            seed=seed,
            strength=0.7,
            parent=self.pictures.get(address) if address else None,
            pose_from=None,
            context=np.zeros(1, np.float32),
            adapter=None,
        )
        image = self.pictures.put(self.painter.paint(commission, lambda *step: None))
        for grow in (
            lambda s: s.begin(round_),
            lambda s: s.record(round_, modality="picture"),
            lambda s: s.record(round_, prompt=prompt),
            lambda s: s.record(round_, image=image),
            lambda s: s.finish(round_),
        ):
            sessions.change(transaction, id, grow)


@pytest.fixture
def studio(config, database):
    return Studio(config, database)


def claim(database, holder="h", lease_s=60.0, every=10):
    with database.write() as transaction:
        return updates.claim(transaction, holder, lease_s, every)


def test_an_update_is_due_after_so_many_votes_that_chose(database, studio):
    for number in range(9):
        studio.vote(number)
    studio.vote(9, choice="tie")
    assert claim(database) is None
    studio.vote(10)
    general, own = claim(database), claim(database)
    assert (general.adapter, general.owner, general.after, general.up_to) == ("shared/general", None, 0, 11)
    assert (own.adapter, own.owner, own.after, own.up_to) == ("users/ann/taste", "ann", 0, 11)
    assert claim(database) is None
    studio.vote(11, owner="bob")
    assert claim(database, every=2) is None  # bob's is the first since
    studio.vote(12, owner="bob")
    assert [claim(database, every=2).adapter for _ in range(2)] == ["shared/general", "users/bob/taste"]


def test_an_update_whose_holder_died_is_taken_on_by_another(database, studio):
    for number in range(2):
        studio.vote(number, owner="ann")
    lost = claim(database, "dead", lease_s=0.05, every=2)
    time.sleep(0.1)
    taken = claim(database, "alive", every=2)
    assert (taken.id, taken.holder, taken.attempts, taken.up_to) == (lost.id, "alive", 2, 2)
    with database.write() as transaction:
        assert not updates.prolong(transaction, lost, 60)
        assert updates.prolong(transaction, taken, 60)
        assert not updates.finish(transaction, lost, status="published", message="", sha256="00" * 32, figures={})  # it comes too late
        assert [found.status for found in updates.updates(transaction, taken.adapter)] == ["running"]


def test_votes_are_learned_from_judged_and_taken_back(config, database, studio):
    for number in range(12):  # the same two pairs of images over and over: what is held out was learned from too
        studio.vote(0, edit=number % 2 == 1)
    updater, own = Updater(config, "cpu", 1), None
    while own is None or own.owner is None:
        own = claim(database)
    status = updater.make(own)
    with database.read() as transaction:
        made = updates.updates(transaction, "users/ann/taste")[0]
    assert status == "published", (made.message, made.figures)
    assert made.figures["wins_before"] == 0.5 < made.figures["wins"]
    assert made.figures["votes"] + made.figures["judges"] == 12
    assert [(view.id, view.sha256) for view in listed(config.adapters, "ann")] == [("users/ann/taste", made.sha256)]
    assert listed(config.adapters, "bob") == ()
    weights = Versions(config.adapters).weights(made.sha256, 2, 2.0)
    assert any(np.abs(value).max() > 0 for name, value in weights.items() if ".lora_B." in name)
    with database.write() as transaction:
        before = updates.roll_back(transaction, "users/ann/taste")
    assert before is None  # the base
    Versions(config.adapters).use("users/ann/taste", before)
    assert listed(config.adapters, "ann") == ()
    with database.write() as transaction, pytest.raises(NotFound):
        updates.roll_back(transaction, "users/ann/taste")


@pytest.mark.parametrize(("rate", "message"), [(1e-30, "agrees with 50%"), (1e37, "makes what was preferred unlikely")])
def test_what_is_not_better_or_has_burst_is_not_used(config, database, studio, rate, message):
    config = config.model_copy(update={"updates": config.updates.model_copy(update={"learning_rate": rate})})
    for number in range(10):
        studio.vote(number)
    due = claim(database)
    assert Updater(config, "cpu", 1).make(due) == "refused"
    with database.read() as transaction:
        assert message in updates.updates(transaction, due.adapter)[0].message
    assert listed(config.adapters, "ann") == ()


def test_an_update_that_is_made_again_begins_where_it_began(config, database, studio):
    for _ in range(10):
        studio.vote(0)
    cut_off = claim(database, "dead", lease_s=0.05)
    versions, updater = Versions(config.adapters), Updater(config, "cpu", 1)
    assert updater.make(cut_off) == "published"
    with database.write() as transaction:  # as if its process had died before the store knew, but after the version was in use
        made = updates.updates(transaction, cut_off.adapter)[0]
        first, made.status, made.sha256, made.lease_until = made.sha256, "running", None, 0.0
    again = claim(database, "alive")
    assert again.id == cut_off.id and updater.make(again) == "published"
    with database.read() as transaction:
        assert updates.updates(transaction, cut_off.adapter)[0].sha256 == first
    assert versions.weights(first, 2, 2.0) is not None


def test_an_update_whose_database_goes_away_is_made_again_and_no_vote_is_lost(config):
    with postgres_server() as server:
        config = config.model_copy(update={"database": server.make("updates")})
        database = Database(config.database)
        database.migrate()
        studio, updater = Studio(config, database), Updater(config, "cpu", 1)
        for _ in range(10):
            studio.vote(0)
        cut_off = claim(database, "dead", lease_s=1)
        server.stop()
        with pytest.raises(Unavailable):
            updater.make(cut_off)
        server.start()
        time.sleep(1)
        again = claim(database, "alive")
        assert (again.id, again.after, again.up_to) == (cut_off.id, 0, 10)
        assert updater.make(again) == "published"
        database.close()


def test_a_vote_whose_parent_image_is_gone_teaches_nothing(config, database, studio, tmp_path):
    for number in range(4):
        studio.vote(number, edit=True)
    for file in (tmp_path / "images").glob("*/*.png"):
        file.unlink()
    due = claim(database, every=4)
    assert Updater(config, "cpu", 1).make(due) == "refused"
    with database.read() as transaction:
        assert updates.updates(transaction, due.adapter)[0].message.startswith("0 votes to learn from and 0 to judge by")


def test_a_directory_of_somebody_else_is_left_alone(config, tmp_path):
    place = tmp_path / "adapters" / "users" / "ann" / "taste"
    place.mkdir(parents=True)
    (place / "mine").write_text("")
    version = tmp_path / "adapters" / "versions" / ("ab" * 32)
    version.mkdir(parents=True)
    with pytest.raises(UserError, match="move it away"):
        Versions(config.adapters).use("users/ann/taste", "ab" * 32)
    assert [file.name for file in place.parent.iterdir()] == ["taste"] and (place / "mine").exists()
