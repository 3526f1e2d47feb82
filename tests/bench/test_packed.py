"""The comparison of packs is judged by its figures; the requests are tried on a real server."""

from __future__ import annotations

import pytest

from tests.bench import packed
from tests.bench.packed import FORMS, Cost, compare_forms, render_costs
from tests.handler.torchserve import Served, body, write_archive
from tests.test_contract import as_java_reads_it, picture


def test_every_form_runs_in_each_round_and_the_first_round_does_not_count() -> None:
    seen: list[tuple[str, int]] = []

    def run(form: str, packs: int) -> Cost:
        seen.append((form, packs))
        return Cost(len(seen), 1.0, 2.0)

    lines: list[str] = []
    found = compare_forms(run, 2, 7, lines.append)
    forms = list(FORMS)
    assert [form for form, _ in seen] == [
        *forms,
        *forms[1:],
        *forms[:1],
        *forms[2:],
        *forms[:2],
    ]
    assert {packs for _, packs in seen} == {7}
    assert all(len(costs) == 2 for costs in found.values())
    assert min(cost.java_us for costs in found.values() for cost in costs) > len(forms)
    assert lines == ["warmed up", "round 1 of 2", "round 2 of 2"]


def test_the_table_shows_medians_and_shares() -> None:
    costs = {"multipart": [Cost(40.0, 60.0, 1.0)] * 3, "v2, binary": [Cost(30.0, 20.0, 1.0)] * 3}
    table = render_costs(costs, {"multipart": 41_000, "v2, binary": 33_000}).splitlines()
    assert table[2].split() == ["multipart", "41,000", "40.0", "60.0", "100.0", "100..100", "100%"]
    assert table[3].split() == ["v2,", "binary", "33,000", "30.0", "20.0", "50.0", "50..50", "50%"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(write_archive(tmp_path_factory.mktemp("packed")), measured=False)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "multipart"])
def test_every_form_carries_the_images_of_the_connectors_own(served: Served, form: str) -> None:
    images = [picture(seed) for seed in range(5)]
    pack = FORMS[form]([image.data for image in images])
    headers = dict(pack.headers)
    answer = served.one(body(pack.body, headers.pop("Content-Type"), **headers))
    assert answer.status == 200
    multipart = served.one(as_java_reads_it(images)).body
    assert packed.read_classes(answer.body) == packed.read_classes(multipart)
