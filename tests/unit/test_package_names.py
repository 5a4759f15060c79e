"""Names of tenants' packages inside the one cluster: never shared between tenants, whatever a client calls them."""

from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.raylayer.jobs import own_package_name

NAMES = st.sampled_from(["_ray_pkg_0123.zip", "plain.zip", "a_b.zip", "demo-1.0-py3-none-any.whl"])
TENANTS = st.sampled_from(["a", "a-b", "b", "univ"])


@given(st.tuples(TENANTS, NAMES, st.binary(max_size=4)), st.tuples(TENANTS, NAMES, st.binary(max_size=4)))
def test_only_the_same_content_of_the_same_tenant_has_the_same_name(one, two) -> None:
    same = own_package_name(*one) == own_package_name(*two)
    assert not same or (one[0], one[2]) == (two[0], two[2])


def test_a_wheel_keeps_what_pip_needs() -> None:
    name = own_package_name("a", "demo-1.0-py3-none-any.whl", b"x")
    distribution, version, build, *tags = name.removesuffix(".whl").split("-")
    assert (distribution, version, tags) == ("demo", "1.0", ["py3", "none", "any"])
    assert build[0].isdigit()
    again = own_package_name("a", name, b"x")
    assert again == name


def test_a_package_keeps_its_kind() -> None:
    assert own_package_name("a", "_ray_pkg_0123.zip", b"x").endswith(".zip")
