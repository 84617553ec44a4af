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


def test_no_stage_but_compose_names_source_in_dvc_yaml(repository_root: Path) -> None:
    """What a stage reruns for follows from what it imports and is never kept by hand."""
    stages = yaml.safe_load((repository_root / "dvc.yaml").read_text())["stages"]
    named = {stage: [path for path in entry["deps"] if not path.startswith("data/")] for stage, entry in stages.items()}
    assert named.pop("compose") == ["conf", "src", "constraints.txt"]
    assert not any(named.values())
    assert all({"data/code.yaml": [stage]} in stages[stage]["params"] for stage in named)
    assert set(named) == set(STAGES)
