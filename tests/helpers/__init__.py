"""What several test modules share. No test module imports another one, or conftest."""

import pkgutil

import pytest

# Rewritten by pytest, a helper's failed assertion shows what it compared.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
