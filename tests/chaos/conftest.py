from tests.ray.conftest import local_ray  # noqa: F401
