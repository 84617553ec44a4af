"""The code that a stage can reach: definitions followed by name, nothing imported and nothing run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from textmill.config.code import STAGES, Code, StageCode
from textmill.config.layout import Layout

MODULES = {
    "__init__.py": "",
    "task.py": """
from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml
import reach_plugins.helpers as tools
from reach_plugins import numbers
from reach_plugins.base import Base

if TYPE_CHECKING:
    from reach_plugins.typing_only import Never
else:
    Never = decorated

LIMIT = numbers.FIRST
UNUSED = numbers.SECOND
raise RuntimeError("nothing of this may run")


def decorated(function):
    return function


class Task(Base):
    factor = LIMIT
    other = "reach_plugins.typing_only.Never"

    @decorated
    def always(self):
        return tools.one()

    def fit(self, never: Never):
        from reach_plugins.local import inner

        if isinstance(never, Named):
            return Made()
        return inner(never) + len("page.html.jinja")

    def for_the_page(self):
        return LIMIT

    def report(self):
        return tools.two() + yaml.safe_load("")

    def hidden(self):
        numbers = 3
        return numbers


class Named:
    pass


class Made:
    pass


class Other(Base):
    def other(self):
        return 1
""",
    "base.py": """
from reach_plugins.numbers import THIRD as RENAMED


class Base:
    def shared(self):
        return RENAMED


class Unused:
    pass
""",
    "helpers.py": """
import numpy as np


def one():
    return [two for two in range(3)]


def two():
    return np.ones(2)
""",
    "numbers.py": "FIRST = 1\nSECOND = 2\nTHIRD = 3\n",
    "local.py": """
from reach_plugins import circle


def inner(value):
    return circle.there(value)


def outside():
    return 0
""",
    "circle.py": """
def there(value):
    return back(value).shared


def back(value):
    from reach_plugins.local import inner

    return inner(there(value))
""",
    "typing_only.py": "class Never:\n    pass\n",
    "network.py": """
import torch


class Mixin:
    def hook(self):
        return 1


class Network(Mixin, torch.nn.Module):
    def forward(self, x):
        return x
""",
    "page.html.jinja": '{% include "style.css" %}{{ task.for_the_page() }}',
    "style.css": "body {}",
    "unused.css": "p {}",
}
TASK = {"prepare": {"task": {"_target_": "reach_plugins.task.Task"}}}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "reach_plugins"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    (tmp_path / "constraints.txt").write_text("# pins\nnumpy==2.0.0\nPyYAML==6.0.1\nscikit-learn==1.5.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def reach(package: Path, sections: dict[str, Any] = TASK) -> StageCode:
    return Code(Layout(package.parent)).stage(next(iter(sections)), sections)


def reached(package: Path, sections: dict[str, Any] = TASK) -> set[str]:
    """The definitions of the outside package."""
    mine = (name for name in reach(package, sections).definitions if name.startswith("reach_plugins"))
    return {name.removeprefix("reach_plugins.").removeprefix("reach_plugins") for name in mine}


def edit(package: Path, file: str, old: str, new: str) -> None:
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))


def test_class_bases_aliases_constants_and_templates_are_followed(package: Path) -> None:
    found = reached(package)
    assert found >= {
        *(
            "task:Task",
            "task:Task.fit",
            "task:Task.always",
            "task:Task.for_the_page",
            "task:LIMIT",
            "task:decorated",
            "task:",
            "task:Made",
        ),
        *("base:Base", "numbers:FIRST", "helpers:one", "local:inner"),
        *("circle:there", "circle:back"),
        *(":page.html.jinja", ":style.css"),
    }


def test_package_without_init_file_is_followed(package: Path) -> None:
    whole = reached(package)
    (package / "__init__.py").unlink()
    assert reached(package) == whole - {":"}


def test_what_no_reached_code_names_is_left_out(package: Path) -> None:
    found = reached(package)
    assert not found & {
        *(
            "task:Other",
            "task:Other.other",
            "task:Named",
            "task:UNUSED",
            "task:Task.hidden",
            "base:Unused",
            "numbers:SECOND",
        ),
        *("helpers:two", "local:outside", "typing_only:Never", ":unused.css"),
    }


def test_method_is_reached_once_some_reached_code_names_it(package: Path) -> None:
    assert "base:Base.shared" in reached(package), "circle.there names it"
    edit(package, "circle.py", ".shared", "")
    assert not reached(package) & {"base:Base.shared", "numbers:THIRD"}


def test_local_name_hides_the_module_of_the_same_name(package: Path) -> None:
    edit(package, "task.py", "def hidden", "def check")
    assert "task:Task.check" in reached(package)
    assert "numbers:SECOND" not in reached(package)


def test_packages_count_by_their_pin_where_reached_code_imports_them(package: Path) -> None:
    sections = {"evaluate": TASK["prepare"]}
    before = reach(package, sections)
    assert before.packages["pyyaml"] == "6.0.1", "evaluate calls report, which imports yaml"
    edit(package, "../constraints.txt", "6.0.1", "6.0.2")
    after = reach(package, sections)
    assert after.packages == {**before.packages, "pyyaml": "6.0.2"}
    assert after.digest != before.digest
    assert after.definitions == before.definitions


def test_every_method_below_a_base_of_a_library_is_reached(package: Path) -> None:
    sections = {"prepare": {"network": {"_target_": "reach_plugins.network.Network"}}}
    assert reached(package, sections) >= {"network:Network.forward", "network:Mixin.hook"}
    assert reach(package, sections).packages["torch"] == "not pinned"


def test_comments_docstrings_formatting_and_import_order_do_not_count(package: Path) -> None:
    before = reach(package)
    edit(
        package,
        "helpers.py",
        "def one():\n    return [two for two in range(3)]",
        '''def one():
    """Words."""
    # More words
    return [
        two for two in range(3)
    ]''',
    )
    edit(package, "task.py", "    factor = LIMIT\n", "    factor = LIMIT\n    '''The factor.'''\n")
    edit(
        package,
        "task.py",
        "import yaml\nimport reach_plugins.helpers as tools\n",
        "import reach_plugins.helpers as tools\nimport yaml\n\n",
    )
    assert reach(package) == before
    edit(package, "helpers.py", "range(3)", "range(4)")
    after = reach(package)
    differing = {name for name in before.definitions if before.definitions[name] != after.definitions[name]}
    assert differing == {"reach_plugins.helpers:one"}


def test_import_of_another_thing_by_the_same_name_counts(package: Path) -> None:
    before = reach(package)
    edit(package, "base.py", "THIRD as RENAMED", "SECOND as RENAMED")
    after = reach(package)
    assert after.digest != before.digest
    assert "reach_plugins.numbers:SECOND" in after.definitions


def test_evaluator_that_a_task_names_belongs_to_measuring_stages_only(package: Path) -> None:
    (package / "judge.py").write_text("class Judge:\n    def report(self):\n        return 'words'\n")
    edit(package, "base.py", "class Base:\n", "class Base:\n    evaluator = 'reach_plugins.judge.Judge'\n\n")
    task = TASK["prepare"]
    for stage in ("evaluate", "export", "register"):
        assert "judge:Judge" in reached(package, {stage: task, "export": task})
    for stage in ("prepare", "train"):
        assert "judge:Judge" not in reached(package, {stage: task})


def test_facts_that_were_kept_give_the_same_digests(package: Path) -> None:
    code = Code(Layout(package.parent))
    first = code.stage("prepare", TASK)
    code.save([first])
    kept = Layout(package.parent).state / "code"
    assert (kept / "facts.json").is_file()
    assert (kept / f"{first.digest}.json").is_file()
    assert reach(package) == first


def test_text_that_is_not_python_is_left_to_the_stage_that_imports_it(package: Path) -> None:
    (package / "helpers.py").write_text("def one(:\n")
    assert "task:Task" in reached(package)


def test_another_version_of_python_gives_the_same_facts(package: Path, repository_root: Path) -> None:
    script = (
        "import sys, json, pathlib; sys.path.insert(0, sys.argv[1]); from code_facts import read_facts; "
        "print(json.dumps([read_facts(path.read_text()) for path in sorted(pathlib.Path().glob('*.py'))]))"
    )
    outputs = []
    for python in (sys.executable, *filter(None, map(shutil.which, ("python3.11", "python3.12")))):
        command = [python, "-c", script, str(repository_root / "src/textmill/config")]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True)
        if done.returncode != 127:  # pyenv has names for versions that it cannot run here
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
    assert len(set(outputs)) == 1


def test_plots_that_prepare_draws_in_another_process_belong_to_it(package: Path) -> None:
    code = reach(package)
    assert {"textmill.data.plots:_draw_lengths", "textmill.data.plots:_draw_classes"} <= code.definitions.keys()
    assert "matplotlib" in code.packages


def test_no_stage_but_compose_names_source_in_dvc_yaml(repository_root: Path) -> None:
    """What a stage reruns for follows from what it imports and is never kept by hand."""
    stages = yaml.safe_load((repository_root / "dvc.yaml").read_text())["stages"]
    named = {stage: [path for path in entry["deps"] if not path.startswith("data/")] for stage, entry in stages.items()}
    assert named.pop("compose") == ["conf", "src", "constraints.txt"]
    assert not any(named.values())
    assert all({"data/code.yaml": [stage]} in stages[stage]["params"] for stage in named)
    assert set(named) == set(STAGES)


# Each: files of a package with the class `task.Task`, the file that is edited, old text, new text
RESULT_CHANGES: dict[str, tuple[dict[str, str], str, str, str]] = {
    "relative import": (
        {"task.py": "from .tools import f\nclass Task:\n    x = f()\n", "tools.py": "def f():\n    return 1\n"},
        *("tools.py", "return 1", "return 2"),
    ),
    "relative import of a module, in a function of a subpackage": (
        {
            "task.py": "from reach_more.inner import go\nclass Task:\n    x = go()\n",
            "inner/__init__.py": "def go():\n    from .. import tools as t\n    return t.f()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "star import": (
        {
            "task.py": "from reach_more.tools import *\nclass Task:\n    x = f()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "star import passed on": (
        {
            "__init__.py": "from .tools import *\n",
            "task.py": "from reach_more import f\nclass Task:\n    x = f()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "import that may fail": (
        {
            "task.py": "try:\n    from reach_more.fast import f\nexcept ImportError:\n"
            "    from reach_more.slow import f\n"
            "class Task:\n    x = f()\n",
            "fast.py": "def f():\n    return 1\n",
            "slow.py": "def f():\n    return 1\n",
        },
        *("fast.py", "return 1", "return 2"),
    ),
    "import in a branch of a function": (
        {
            "task.py": "class Task:\n    def __init__(self, x):\n        if x:\n"
            "            from reach_more.fast import f\n"
            "        else:\n            from reach_more.slow import f\n        f()\n",
            "fast.py": "def f():\n    return 1\n",
            "slow.py": "def f():\n    return 1\n",
        },
        *("fast.py", "return 1", "return 2"),
    ),
    "imported name bound again": (
        {
            "task.py": "from reach_more.tools import f\ndef wrap(g):\n    return lambda: g() + 1\nf = wrap(f)\n"
            "class Task:\n    x = f()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("task.py", "g() + 1", "g() + 2"),
    ),
    "aliases swapped": (
        {
            "task.py": "from reach_more.tools import f as a, g as b\nclass Task:\n    x = a() - b()\n",
            "tools.py": "def f():\n    return 1\ndef g():\n    return 2\n",
        },
        *("task.py", "f as a, g as b", "g as a, f as b"),
    ),
    "default of the same name as the argument": (
        {
            "task.py": "from reach_more.tools import f\nclass Task:\n    def __init__(self, f=f):\n        f()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "comprehension over a thing of the same name": (
        {"task.py": "words = [1]\nclass Task:\n    x = [words for words in words]\n"},
        *("task.py", "[1]", "[2]"),
    ),
    "registered by a decorator": (
        {
            "task.py": "KNOWN = {}\ndef register(f):\n    KNOWN[f.__name__] = f\n    return f\n\n@register\ndef f():\n"
            "    return 1\n\nclass Task:\n    def __init__(self, name):\n        KNOWN[name]()\n"
        },
        *("task.py", "return 1", "return 2"),
    ),
    "registered in a module imported for that": (
        {
            "task.py": "import reach_more.tools\nfrom reach_more.known import KNOWN\nclass Task:\n"
            "    def __init__(self, name):\n        KNOWN[name]()\n",
            "known.py": "KNOWN = {}\n",
            "tools.py": "from reach_more.known import KNOWN\nKNOWN['f'] = lambda: 1\n",
        },
        *("tools.py", ": 1", ": 2"),
    ),
    "registered by __init_subclass__": (
        {
            "task.py": "class Base:\n    known = []\n    def __init_subclass__(cls):\n        Base.known.append(cls)\n"
            "class One(Base):\n    value = 1\nclass Task:\n    x = Base.known[0].value\n"
        },
        *("task.py", "value = 1", "value = 2"),
    ),
    "not for type checkers": (
        {
            "task.py": "from typing import TYPE_CHECKING\nX = 1\nif not TYPE_CHECKING:\n    X = 2\nclass Task:\n"
            "    x = X\n"
        },
        *("task.py", "X = 2", "X = 3"),
    ),
    "__getattr__ of a module": (
        {
            "task.py": "from reach_more.tools import f\nclass Task:\n    x = f\n",
            "tools.py": "def __getattr__(name):\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "module imported by a literal name": (
        {
            "task.py": "import importlib\nclass Task:\n    x = importlib.import_module('reach_more.tools').f()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "bound inside an expression": (
        {"task.py": "A = (B := 1)\nclass Task:\n    x = B\n"},
        *("task.py", "1", "2"),
    ),
    "class defined twice": (
        {"task.py": "class Task:\n    x = 1\nclass Task(Task):\n    pass\n"},
        *("task.py", "1", "2"),
    ),
    "property in a pattern": (
        {
            "task.py": "class Point:\n    @property\n    def size(self):\n        return 1\nclass Task:\n"
            "    def __init__(self):\n        match Point():\n            case Point(size=1):\n                pass\n"
        },
        *("task.py", "return 1", "return 2"),
    ),
    "attrgetter with dots": (
        {
            "task.py": "from operator import attrgetter\nclass Part:\n    def size(self):\n        return 1\n"
            "class Task:\n"
            "    part = Part()\n    def __init__(self):\n        attrgetter('part.size')(self)()\n"
        },
        *("task.py", "return 1", "return 2"),
    ),
    "hook of an enumeration": (
        {
            "task.py": "import enum\nclass Kind(enum.Enum):\n    A = 1\n    @classmethod\n"
            "    def _missing_(cls, value):\n"
            "        return 1\nclass Task:\n    x = Kind(2)\n"
        },
        *("task.py", "return 1", "return 2"),
    ),
    "byte order mark": (
        {"task.py": "\ufeffX = 1\nclass Task:\n    x = X\n"},
        *("task.py", "1", "2"),
    ),
    "assignment to an attribute of a module": (
        {
            "task.py": "from reach_more import tools\ntools.LIMIT = 2\nclass Task:\n    x = tools.f()\n",
            "tools.py": "LIMIT = 1\ndef f():\n    return LIMIT\n",
        },
        *("task.py", "= 2", "= 3"),
    ),
    "partial, constant through an alias, field's default": (
        {
            "task.py": "from dataclasses import dataclass, field\nfrom functools import partial\n"
            "from reach_more import tools\n"
            "same = tools\n@dataclass\nclass Task:\n    x: list = field(default_factory=partial(same.f, 1))\n",
            "tools.py": "LIMIT = 1\ndef f(x):\n    return LIMIT\n",
        },
        *("tools.py", "= 1", "= 2"),
    ),
    "attribute overridden in a class below": (
        {"task.py": "class Base:\n    limit = 1\n    x = 3\nclass Task(Base):\n    limit = 2\n"},
        *("task.py", "limit = 2", "limit = 4"),
    ),
    "method of a mixin that a base calls": (
        {
            "task.py": "from reach_more.tools import Mixin\nclass Base:\n    def __init__(self):\n        self.step()\n"
            "class Task(Mixin, Base):\n    pass\n",
            "tools.py": "class Mixin:\n    def step(self):\n        return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
    "template that extends another": (
        {
            "task.py": "class Task:\n    x = 'a.jinja'\n",
            "a.jinja": "{% extends 'b.jinja' %}",
            "b.jinja": "{% import 'c.jinja' as c %}",
            "c.jinja": "1",
        },
        *("c.jinja", "1", "2"),
    ),
    "imported through the package": (
        {
            "__init__.py": "from reach_more.tools import f as g\n",
            "task.py": "import reach_more\nclass Task:\n    x = reach_more.g()\n",
            "tools.py": "def f():\n    return 1\n",
        },
        *("tools.py", "return 1", "return 2"),
    ),
}


@pytest.mark.parametrize("case", RESULT_CHANGES)
def test_change_that_alters_a_result_alters_the_digest(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, edited, old, new = RESULT_CHANGES[case]
    folder = tmp_path / "reach_more"
    for name, text in {"__init__.py": "", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sections = {"prepare": {"task": {"_target_": "reach_more.task.Task"}}}
    before = reach(folder, sections).digest
    edit(folder, edited, old, new)
    assert reach(folder, sections).digest != before


def test_import_in_a_method_that_nobody_calls_does_not_count(package: Path) -> None:
    edit(
        package,
        "task.py",
        "    def hidden(self):\n",
        "    def hidden(self):\n        import scipy\n        from reach_plugins.local import outside\n",
    )
    assert "scikit-learn" not in reach(package).packages
