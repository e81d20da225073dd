"""What several test modules share. No test module imports another one, or conftest."""

import pytest

pytest.register_assert_rewrite(__name__)  # so that a helper's failed assertion shows what it compared
