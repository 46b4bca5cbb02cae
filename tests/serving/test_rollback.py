"""The general adapter, which everybody may use, is taken back by an operator: over real HTTP."""

import numpy as np
import pytest

from omr_ray.diffusion.adapters import Adapter
from omr_ray.serving.adapters import AdapterCache, pinned
from omr_ray.serving.store import updates
from omr_ray.serving.store.database import Database
from omr_ray.serving.store.tables import AdapterUpdate
from omr_ray.serving.versions import Versions
from tests.web_service import asked, ended, shaped, web_service

pytestmark = pytest.mark.timeout(600)
ROLLBACK = "/v1/updates/general/rollback"
NAME = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"


def learned(config, value):
    """A version of the general adapter, in use as if votes had taught it; its hash."""
    weights = {NAME.format("A"): np.full((4, 8), value, np.float32), NAME.format("B"): np.full((8, 4), value, np.float32)}
    versions, database = Versions(config.adapters), Database(config.database)
    sha256 = versions.add(Adapter(weights=weights, rank=4, alpha=4.0), "a card", {})
    with database.write() as transaction:
        transaction.add(AdapterUpdate(adapter=updates.GENERAL, up_to=value, status="published", sha256=sha256, created_at=0.0, attempts=1))
        versions.use(updates.GENERAL, sha256)
    database.close()
    return sha256


def in_use(client):
    return {adapter["id"]: adapter["sha256"] for adapter in client.get("/v1/adapters").json()["data"]}


def test_an_operator_takes_the_general_adapter_back_version_by_version(tmp_path):
    with web_service(tmp_path, owners=("ann", "bob"), http={"keys": "required", "operators": ["bob"]}) as service:
        ann, bob = service.client("ann"), service.client("bob")
        first, second = (learned(service.config, value) for value in (1, 2))
        assert in_use(ann) == in_use(bob) == {"shared/general": second}
        service.models.go.clear()
        session = ann.post("/v1/sessions", json={}).json()["id"]
        id = asked(ann, session, "a red dress", adapter="shared/general")

        told = shaped(ann.post(ROLLBACK), 403)  # everybody uses it, so not everybody may
        assert (told["code"], told["type"]) == ("no_operator", "permission_error")
        assert in_use(ann) == {"shared/general": second}
        taken_back = bob.post(ROLLBACK)
        assert taken_back.status_code == 200 and [adapter["sha256"] for adapter in taken_back.json()["data"]] == [first]
        assert in_use(ann) == {"shared/general": first}
        history = [(one["status"], one["sha256"]) for one in ann.get("/v1/updates/general").json()["data"]]
        assert history == [("rolled_back", second), ("published", first)]
        assert ann.get("/v1/updates").json()["data"] == []  # her own has learned nothing

        service.models.go.set()  # what was asked for with the second is painted with it
        assert ended(ann, session, id)["status"] == "done"
        assert service.models.painter.commissions[-1].adapter == pinned("shared/general", second)
        with AdapterCache(service.config.adapters, rank=4, alpha=4.0, kept=1).held(pinned("shared/general", second)) as held:
            assert held.sha256 == second

        assert bob.post(ROLLBACK).json()["data"] == [] == list(in_use(ann))  # the base
        assert shaped(bob.post(ROLLBACK), 404)["code"] == "not_found"
        gone = ann.post(f"/v1/sessions/{session}/rounds", json={"utterance": "blue", "adapter": "shared/general"})
        assert shaped(gone, 404)["code"] == "adapter_not_found"


def test_one_that_is_being_updated_is_not_taken_back(tmp_path):
    with web_service(tmp_path, http={"keys": "required", "operators": ["ann"]}) as service, service.client("ann") as ann:
        first = learned(service.config, 1)
        database = Database(service.config.database)
        with database.write() as transaction:
            transaction.add(AdapterUpdate(adapter=updates.GENERAL, up_to=2, status="running", created_at=0.0, attempts=1))
        database.close()
        assert "is being updated" in shaped(ann.post(ROLLBACK), 400)["message"]
        assert in_use(ann) == {"shared/general": first}


def test_where_no_keys_are_asked_for_everybody_is_an_operator(tmp_path):
    with web_service(tmp_path, http={"keys": "off"}) as service, service.client() as anybody:
        learned(service.config, 1)
        assert anybody.post(ROLLBACK).json()["data"] == []


def test_the_description_of_the_api_says_who_may(tmp_path):
    with web_service(tmp_path) as service, service.client() as anybody:
        told = anybody.get("/openapi.json").json()["paths"][ROLLBACK]["post"]
    assert "for operators" in told["description"] and {"200", "400", "403", "404"} <= set(told["responses"])
    assert "operator" in told["responses"]["403"]["description"]
