"""The official client, as it is, against the real server: generate, edit, stream; and what it is refused."""

import base64
import io
import time

import openai
import pytest
from PIL import Image

from tests.web_service import ended, say, web_service

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    changes = {"painting": {"steps": 4, "width": 64, "height": 64}, "name": "atelier"}
    with web_service(tmp_path_factory.mktemp("service"), **changes) as found:
        yield found


def client_of(service, owner="ann"):
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.keys[owner], max_retries=0, timeout=240)


def opened(b64_json):
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def pixels(b64_json):
    return opened(b64_json).convert("RGB").tobytes()


def test_the_official_client_generates(service):
    client, ann = client_of(service), service.client("ann")
    made = client.images.generate(prompt="a red dress", model="atelier", n=2, size="64x64", extra_body={"seed": 7})
    assert (made.size, made.output_format, made.background, made.quality) == ("64x64", "png", "opaque", "auto")
    assert [image.revised_prompt for image in made.data] == ["a red dress"] * 2 and made.usage.total_tokens == 0
    assert abs(made.created - time.time()) < 600
    first, second = made.data
    assert [image.seed for image in made.data] == [7, 8] and pixels(first.b64_json) != pixels(second.b64_json)
    again = client.images.generate(prompt="a red dress", extra_body={"seed": 8}).data[0]
    assert pixels(again.b64_json) == pixels(second.b64_json)
    # It is kept as a round is, and the PNG leads back to it.
    assert ended(ann, first.session_id, first.round_id)["prompt"] == "a red dress"
    restored = ann.post("/v1/restore", files={"image": ("x.png", base64.b64decode(first.b64_json))}).json()
    assert (restored["session"], restored["round"]["id"], restored["recipe"]["seed"]) == (first.session_id, first.round_id, 7)
    assert first.session_id not in [row["id"] for row in ann.get("/v1/sessions").json()["data"]]  # it is no dialogue
    for format in ("jpeg", "webp"):
        image = client.images.generate(prompt="a red dress", output_format=format, output_compression=60).data[0]
        assert opened(image.b64_json).format == format.upper() and opened(image.b64_json).size == (64, 64)


def test_the_official_client_edits(service):
    client = client_of(service)
    png = base64.b64decode(client.images.generate(prompt="a red dress", extra_body={"seed": 3}).data[0].b64_json)
    one = client.images.edit(image=("dress.png", png), prompt="a blue dress", extra_body={"seed": 4}).data[0]
    other = client.images.edit(image=[("dress.png", png)], prompt="a blue dress", n=2, extra_body={"seed": 4}).data
    assert [image.round_id for image in other] == [2, 3] and one.revised_prompt == "a blue dress"
    assert pixels(one.b64_json) == pixels(other[0].b64_json) != pixels(other[1].b64_json)
    commission = service.models.painter.commissions[-1]
    assert commission.parent.image.tobytes() == Image.open(io.BytesIO(png)).convert("RGB").tobytes()  # what was sent was edited
    assert commission.strength == service.config.painting.strength


def test_the_official_client_streams_what_becomes_of_an_image(service):
    client = client_of(service)
    service.models.go.clear()
    with client.images.generate(prompt="a green coat", stream=True, partial_images=3, extra_body={"seed": 5}) as events:
        kinds, shown = [], []
        for event in events:
            kinds.append(event.type)
            shown.append(event)
            service.models.go.set()  # the first preview has come before the image was done
    assert kinds[0] == "image_generation.partial_image" and kinds[-1] == "image_generation.completed"
    assert 1 <= kinds.count("image_generation.partial_image") <= 3
    assert [event.partial_image_index for event in shown[:-1]] == list(range(len(shown) - 1))
    assert all(opened(event.b64_json).size == (64, 64) and event.size == "64x64" for event in shown)
    same = client.images.generate(prompt="a green coat", extra_body={"seed": 5}).data[0]
    assert pixels(shown[-1].b64_json) == pixels(same.b64_json)
    png = ("coat.png", base64.b64decode(same.b64_json))
    with client.images.edit(image=png, prompt="a blue coat", stream=True, output_format="webp") as events:
        [event] = list(events)  # none in between were asked for
    assert event.type == "image_edit.completed" and opened(event.b64_json).format == "WEBP"


def test_a_fault_is_told_in_the_middle_of_a_stream_and_hides_what_is_ours(service):
    client = client_of(service)
    with (
        pytest.raises(openai.APIError, match="internal error; try again") as told,
        client.images.generate(prompt="a fault", stream=True) as events,
    ):
        list(events)
    assert told.value.body == {
        "message": "internal error; try again", "type": "server_error", "param": None, "code": "generation_failed"
    }  # fmt: skip
    with pytest.raises(openai.InternalServerError) as failed:
        client.images.generate(prompt="a fault")
    assert failed.value.code == "generation_failed" and "secret" not in str(failed.value)


def test_a_client_that_goes_away_ends_the_step_loop(service):
    client, ann = client_of(service), service.client("ann")
    for stream in (True, False):
        service.models.go.clear()
        service.models.stopped.clear()
        try:
            if stream:
                with client.images.generate(prompt="a gray coat", stream=True, partial_images=3) as events:
                    assert next(iter(events)).type == "image_generation.partial_image"
            else:
                with pytest.raises(openai.APITimeoutError):
                    client.with_options(timeout=3).images.generate(prompt="a gray coat")
            assert service.models.stopped.wait(240)
        finally:
            service.models.go.set()
    limits = service.config.limits.concurrent_rounds
    made = client.images.generate(prompt="a gray coat", n=limits)  # none of the places is taken any more
    assert len(made.data) == limits and ended(ann, made.data[0].session_id, 1)["status"] == "done"


def test_a_request_with_a_key_is_carried_out_once_and_outlives_its_client(service):
    client = client_of(service)
    ask = {"prompt": "a pink skirt", "extra_headers": {"Idempotency-Key": "skirt"}}
    service.models.go.clear()
    try:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=3).images.generate(**ask)
    finally:
        service.models.go.set()
    painted = len(service.models.painter.commissions)
    one, two = client.images.generate(**ask).data[0], client.images.generate(**ask).data[0]
    assert one.b64_json == two.b64_json and (one.session_id, one.round_id, one.seed) == (two.session_id, two.round_id, two.seed)
    assert len(service.models.painter.commissions) <= painted + 1
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(**ask | {"prompt": "a pink coat"})
    assert refused.value.code == "idempotency_key_reused"


def test_a_prompt_can_be_said_in_a_dialogue(service):
    client, ann = client_of(service), service.client("ann")
    id = ann.post("/v1/sessions", json={}).json()["id"]
    assert say(ann, id, "a red dress")["status"] == "done" and say(ann, id, "now striped")["status"] == "done"
    made = client.images.generate(prompt="now blue", extra_body={"session_id": id, "parent_round_id": 1}).data[0]
    round_ = ann.get(f"/v1/sessions/{id}/rounds/{made.round_id}").json()
    assert (round_["parent"], round_["mode"], made.round_id) == (1, "edit", 3)
    assert made.revised_prompt == round_["prompt"] == "a blue dress"
    for owner, extra, status in [
        ("bob", {"session_id": id}, 404),
        ("ann", {"session_id": id, "parent_round_id": 99}, 404),
        ("ann", {"parent_round_id": 1}, 400),
        ("ann", {"adapter_id": "users/bob/taste"}, 404),
    ]:
        with pytest.raises(openai.APIStatusError) as refused:
            client_of(service, owner).images.generate(prompt="a dress", extra_body=extra)
        assert refused.value.status_code == status
    assert len(ann.get(f"/v1/sessions/{id}").json()["rounds"]) == 3


def test_what_cannot_be_honoured_is_refused_by_name(service):
    client, png = client_of(service), io.BytesIO()
    Image.new("RGBA", (64, 64)).save(png, "PNG")
    for field, value in {
        "size": "1024x1024", "quality": "hd", "background": "transparent", "response_format": "url", "moderation": "low",
        "negative_prompt": "red", "num_inference_steps": 50, "guidance_scale": 9.5, "n": 5, "partial_images": 1,
        "output_compression": 50, "style": "vivid", "output_format": "gif", "seed": -1, "prompt": "a" * 2001, "adapter_id": "../x",
    }.items():  # fmt: skip
        with pytest.raises(openai.APIStatusError) as refused:
            client.images.generate(prompt="a dress", extra_body={field: value})
        assert (refused.value.status_code in (400, 422), refused.value.param) == (True, field)
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a dress", n=2, stream=True)
    assert refused.value.param == "n"
    image = ("x.png", png.getvalue())
    for options, param in [({"mask": image}, "mask"), ({"image": [image, image]}, "image"), ({"input_fidelity": "high"}, "input_fidelity")]:
        with pytest.raises(openai.APIStatusError) as refused:
            client.images.edit(**{"image": image, "prompt": "a dress", **options})
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt="a dress", model="dall-e-3")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    # What is honoured as it is asked for is taken.
    same = {"num_inference_steps": 4, "guidance_scale": 1.0, "negative_prompt": ""}
    assert client.images.generate(prompt="a dress", quality="auto", response_format="b64_json", extra_body=same).data


def test_models_are_listed(service):
    client = client_of(service)
    [model] = client.models.list().data
    assert (model.id, model.object) == ("atelier", "model") and client.models.retrieve("atelier").id == "atelier"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-2")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0).models.list()


def test_a_request_over_the_limit_leaves_nothing_behind(tmp_path):
    png = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(png, "PNG")
    with web_service(tmp_path, limits={"requests_per_minute": 1}) as service:
        client, minute = client_of(service), time.time() // 60
        client.images.generate(prompt="a dress")
        stored = len(list((tmp_path / "images").rglob("*.png")))
        with pytest.raises(openai.RateLimitError) as refused:
            client.images.edit(image=("x.png", png.getvalue()), prompt="a dress")
        if time.time() // 60 == minute:
            assert int(refused.value.response.headers["retry-after"]) >= 1
            assert len(list((tmp_path / "images").rglob("*.png"))) == stored
