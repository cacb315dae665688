"""What `pannier doctor` makes of a member's own account of itself."""

from __future__ import annotations

import pytest

from pannier.store.etcd_health import USUAL_QUOTA_BYTES, judge
from pannier.store.etcd_wire import StatusResponse, decode


def test_a_member_with_room_is_ok() -> None:
    status = decode(b'{"header":{"revision":"7"},"leader":"1","dbSize":"20480"}', StatusResponse)
    assert judge(status).in_short == "ok"


@pytest.mark.parametrize(
    ("size", "quota", "warned"),
    [
        (1_700 << 20, 0, True),  # a member before 3.6 does not tell its quota
        (1_600 << 20, 0, False),
        (1_700 << 20, 8 << 30, False),
        (900 << 20, 1 << 30, True),
    ],
)
def test_a_database_near_its_quota_is_a_warning(size: int, quota: int, warned: bool) -> None:
    health = judge(StatusResponse(db_size=size, db_size_quota=quota))
    assert not health.problem
    assert bool(health.warning) is warned
    assert ("defrag" in health.remedy) is warned
    assert health.in_short.startswith("ok, but its database" if warned else "ok")


def test_it_says_where_the_quota_is_not_known() -> None:
    guessed = judge(StatusResponse(db_size=USUAL_QUOTA_BYTES))
    told = judge(StatusResponse(db_size=USUAL_QUOTA_BYTES, db_size_quota=USUAL_QUOTA_BYTES))
    assert "2G of 2G, etcd's default" in guessed.warning
    assert told.warning.endswith("2G of 2G")


def test_an_alarm_is_a_problem_with_its_own_remedy() -> None:
    full = judge(StatusResponse(errors=["memberID:10276657743932975437 alarm:NOSPACE "]))
    assert "takes no writes" in full.problem
    assert "alarm disarm" in full.remedy
    broken = judge(StatusResponse(errors=["memberID:1 alarm:CORRUPT "]))
    assert "differs" in broken.problem
    assert "compact" not in broken.remedy


def test_any_other_error_is_told_in_etcds_words() -> None:
    assert (
        judge(StatusResponse(errors=["etcdserver: no leader"])).problem == "etcdserver: no leader"
    )
