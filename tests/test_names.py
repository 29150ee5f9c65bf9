"""A file's name says what is in it, so no two files share one."""

from collections import Counter

from diffusion.config import ROOT

FOLDERS = ("diffusion", "tools", "tests")


def test_no_two_files_have_one_name():
    names = Counter(
        path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
    ) - Counter({"__init__.py": 10**6})
    assert [name for name, count in names.items() if count > 1] == []
