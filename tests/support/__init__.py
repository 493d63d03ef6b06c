"""What the tests share: plugins that tests/conftest.py loads, and the helpers behind their fixtures."""
