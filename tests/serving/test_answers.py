"""The answers of a real service to well-meant requests."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from PIL import Image

from pipeline import load_classifier
from pipeline.inference import Classifier
from pipeline.serving.batching import Batcher, Batching
from tests.serving.service import JPEG, Service, draw_image, encode, form_file

FILES = [encode(draw_image(seed, (30 + seed, 41))) for seed in range(12)]


@pytest.fixture(scope="module")
def classifier(learned: Path) -> Classifier:
    return load_classifier(str(learned))


def expected(classifier: Classifier, data: bytes, top: int = 5) -> list[tuple[str, float, int]]:
    """The best classes of an image alone."""
    image_CHW = classifier.preprocess(Image.open(io.BytesIO(data)))
    probability_BK, class_BK = classifier.top(image_CHW[None], top)
    return [
        (
            classifier.classes[number],
            pytest.approx(value, abs=1e-6),
            classifier.task_of_class[number],
        )
        for number, value in zip(class_BK[0].tolist(), probability_BK[0].tolist(), strict=True)
    ]


def shown(answer) -> list[tuple[str, float, int]]:
    assert answer.status == 200, answer.content
    return [(best["class"], best["probability"], best["task"]) for best in answer.json["top"]]


def test_form_and_body_give_the_classes_of_the_classifier(service: Service, classifier, learned):
    answer = service.predict(FILES[0])
    assert shown(answer) == expected(classifier, FILES[0])
    assert shown(service.send_form(form_file(FILES[0]))) == shown(answer)
    assert (answer.json["run"], answer.json["stage"]) == (str(learned), 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "PPM"])
def test_format_is_known_by_its_content(service: Service, kind):
    data = encode(draw_image(1), kind)
    assert len(shown(service.predict(data))) == 5


def test_image_is_turned_as_its_camera_says(service: Service):
    upright = draw_image(4)
    exif = Image.Exif()
    exif[0x0112] = 6  # its right side is at the top
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert shown(service.predict(turned)) == shown(service.predict(encode(upright, "PNG")))


@pytest.mark.parametrize("top", [1, 3, 7, 1000])
def test_top_is_the_number_of_classes(service: Service, classifier, top):
    assert shown(service.predict(FILES[2], f"?top={top}")) == expected(classifier, FILES[2], top)


@pytest.mark.parametrize("top", ["0", "-1", "x", "", "1.5", "٣", "9" * 5000])
def test_wrong_top_is_refused(service: Service, top):
    answer = service.predict(FILES[0], f"?top={quote(top)}")
    assert answer.status == 400 and "?top=5" in answer.json["error"]


def test_answer_does_not_depend_on_its_batch(service: Service, classifier):
    """must hold for requests that arrive together, which share batches"""
    before = service.metric("tppt_batch_images_count")
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(service.predict, FILES * 4))
    assert [shown(answer) for answer in answers] == [expected(classifier, d) for d in FILES] * 4
    assert service.metric("tppt_batch_images_count") - before < len(answers), "nothing was batched"


def test_images_that_arrive_together_are_one_batch_of_at_most_its_size(classifier):
    sizes: list[int] = []

    async def classify_all(n_images: int) -> list:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(
                classifier,
                thread,
                Batching(batch=4, wait_s=60),
                n_expected=lambda: n_images - sum(sizes),
                on_batch=sizes.append,
            )
            images = [classifier.preprocess(draw_image(seed)) for seed in range(n_images)]
            calls = [batcher.classify(image, 1 + seed % 3) for seed, image in enumerate(images)]
            return await asyncio.gather(*calls)

    scored = asyncio.run(classify_all(10))
    assert sizes == [4, 4, 2]
    assert [len(each.class_K) for each in scored] == [1 + seed % 3 for seed in range(10)]


def test_fault_of_the_classifier_reaches_each_request_and_no_later_one(classifier):
    async def classify_twice() -> list:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(
                classifier,
                thread,
                Batching(batch=4, wait_s=0.01),
                n_expected=lambda: 2,
                on_batch=lambda size: None,
            )
            wrong = torch.zeros(3, 1, 1, dtype=torch.uint8)
            failed = await asyncio.gather(
                batcher.classify(wrong, 1), batcher.classify(wrong, 1), return_exceptions=True
            )
            return [*failed, await batcher.classify(classifier.preprocess(draw_image(1)), 1)]

    first, second, later = asyncio.run(classify_twice())
    assert isinstance(first, ValueError) and isinstance(second, ValueError)
    assert len(later.class_K) == 1


def test_classes_are_those_of_the_stage_in_class_order(service: Service, classifier):
    found = service.get("/classes").json
    rows = [(entry["class"], entry["task"]) for entry in found["classes"]]
    assert rows == list(zip(classifier.classes, classifier.task_of_class, strict=True))


def test_health_and_readiness(service: Service):
    assert service.get("/healthz").json == {"status": "ok"}
    assert (
        service.get("/readyz").json.items() >= {"status": "ready", "stage": 3, "classes": 7}.items()
    )


def test_metrics_count_requests_images_and_the_stage(service: Service):
    names = ['tppt_requests_total{path="/predict",status="200"}', "tppt_images_total"]
    before = [service.metric(name) for name in names]
    service.predict(FILES[0])
    assert [service.metric(name) for name in names] == [value + 1 for value in before]
    assert service.metric("tppt_model_stage") == 3 and service.metric("tppt_queue_images") == 0
    assert service.metric('tppt_request_seconds_count{path="/predict"}') >= 1
    for _ in range(3):
        service.get("/unknown/path")
    assert service.metric('tppt_requests_total{path="other",status="404"}') >= 3
    assert b"unknown" not in service.get("/metrics").content


def test_every_answer_forbids_foreign_content(service: Service):
    for path in ("/", "/page.js", "/classes", "/unknown", "/metrics"):
        headers = {name.lower(): value for name, value in service.get(path).headers.items()}
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("POST", "/classes", 405), ("GET", "/../../etc/passwd", 404)],
)
def test_wrong_path_or_method_is_refused_as_json(service: Service, method, path, status):
    answer = service.request(method, path)
    words = "the service has POST /predict" if status == 404 else "/predict takes POST"
    assert answer.status == status and words in answer.json["error"]


# Pages of other sites.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://other.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_page_of_another_origin_may_not_send_images(service: Service, headers):
    answer = service.request("POST", "/predict", FILES[0], JPEG | headers)
    assert answer.status == 403 and "another site" in answer.json["error"]


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {}], ids=str)
def test_own_page_and_programs_may_send_images(service: Service, headers):
    assert service.request("POST", "/predict", FILES[0], JPEG | headers).status == 200
    own = {"Origin": service.url}
    assert service.request("POST", "/predict", FILES[0], JPEG | own).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "["])
def test_name_that_was_given_this_address_is_refused(service: Service, host):
    for method, path in (("GET", "/classes"), ("POST", "/predict")):
        answer = service.request(method, path, headers={"Host": host})
        assert answer.status == 421 and "--allow-host" in answer.json["error"]


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "[::1]:80", "LOCALHOST", "10.0.0.7"])
def test_addresses_and_localhost_are_allowed(service: Service, host):
    assert service.request("GET", "/classes", headers={"Host": host}).status == 200
