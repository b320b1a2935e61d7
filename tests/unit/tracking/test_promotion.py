"""Who is champion: promotions that cannot both win, and the way back."""

import json
import multiprocessing
import os

import pytest

from snpdeconv.errors import InputError
from snpdeconv.tracking.artifacts import write_checksums
from snpdeconv.tracking.connection import connect, experiment_id
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import (
    champion_of,
    note,
    promote,
    register_bundle,
    resolve,
    rollback,
    version_tags,
)

pytestmark = pytest.mark.usefixtures("tracking_home")


@pytest.fixture
def versions(model_folder):
    """Three versions of `height`; the first is the champion."""
    client = connect(tracking_uri())
    experiment = experiment_id(client, uri=tracking_uri(), name="models")
    for number in range(3):
        (model_folder / "note.txt").write_text(str(number))
        register_bundle(
            client,
            uri=tracking_uri(),
            run_id=client.create_run(experiment).info.run_id,
            key="k",
            name="height",
            folder=model_folder,
            digest=write_checksums(model_folder),
            tags={},
            champion_if_none=True,
        )


def test_a_challenger_takes_the_alias_from_the_champion_it_was_compared_with(versions):
    assert champion_of("height") == 1
    promotion = promote("height", version=2, instead_of=1, tags={"snpdeconv.difference": "0.1"})
    assert (promotion.champion, promotion.done) == (2, True)
    assert resolve("height@champion").version == 2
    tags = version_tags("height", 2)
    assert tags["snpdeconv.difference"] == "0.1"
    assert tags["snpdeconv.promotion"] == "promoted"
    assert tags["snpdeconv.previous_champion"] == "1"


def test_one_that_was_compared_with_an_earlier_champion_is_refused(versions):
    promote("height", version=2, instead_of=1)
    promotion = promote("height", version=3, instead_of=1)
    assert (promotion.champion, promotion.done) == (2, False)
    assert champion_of("height") == 2
    assert "version 2 came first" in version_tags("height", 3)["snpdeconv.promotion"]


def _promote(version, home, uri, queue):
    os.environ |= {"SNPDECONV_HOME": home, "MLFLOW_TRACKING_URI": uri}
    queue.put(json.dumps([version, promote("height", version=version, instead_of=1).done]))


def test_of_two_at_once_one_wins(versions):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_promote, args=(version, os.environ["SNPDECONV_HOME"], tracking_uri(), queue))
        for version in (2, 3)
    ]
    for process in processes:
        process.start()
    outcomes = dict(json.loads(queue.get(timeout=120)) for _ in processes)
    for process in processes:
        process.join()
    assert sorted(outcomes.values()) == [False, True]
    assert outcomes[champion_of("height")] is True


def test_rollback_gives_the_alias_back_step_by_step(versions):
    promote("height", version=2, instead_of=1)
    promote("height", version=3, instead_of=2)
    assert rollback("height").champion == 2
    assert rollback("height").champion == 1
    with pytest.raises(InputError, match=r"no champion is on record before version 1.*--to"):
        rollback("height")
    assert rollback("height", to=3).champion == champion_of("height") == 3
    assert rollback("height").champion == 1  # what was chosen by mistake is undone


def test_rollback_names_what_there_is(versions):
    with pytest.raises(InputError, match="has no version 9"):
        rollback("height", to=9)
    with pytest.raises(InputError, match="weight: has no champion"):
        rollback("weight")
    assert champion_of("weight") is None


def test_notes_stay_with_a_version(versions):
    note("height", version=3, tags={"snpdeconv.promotion": "refused"})
    assert version_tags("height", 3)["snpdeconv.promotion"] == "refused"
    assert champion_of("height") == 1
