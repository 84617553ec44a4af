"""Message catalogues of packages: the texts of a user interface with what they are in another language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, ClassVar

from textmill.config.section import Section
from textmill.errors import UserError
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.packages import PackagesSource, PackagesSourceConfig

_LOCALES = {"zh": ("zh_Hans", "zh_CN")}
"""What catalogues call a language, where that is not its code; of several in one place the first counts."""


class CataloguesSourceConfig(PackagesSourceConfig):
    """Which language of which packages.

    Attributes:
        language: ISO 639-1 code.
    """

    language: str


class CataloguesSource(PackagesSource):
    """Messages of gettext catalogues (`.po`): `original`, `translated`, and the `catalogue`.

    Untranslated, doubtful (fuzzy) and obsolete messages are left out. A message with a plural gives two
    rows: one of the singular, one of the plural with its last form.
    """

    Config: ClassVar[type[Section]] = CataloguesSourceConfig
    config: CataloguesSourceConfig

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """See `PackagesSource.rows`.

        Raises:
            UserError: The package has no catalogue of the language, or one that cannot be read.
        """
        found = self._catalogues(archive)
        if not found:
            raise UserError(
                f"has no message catalogue in the language {self.config.language!r}",
                where=archive.label,
                fix="Choose another language, or take the package off the list",
            )
        for name in found:
            for text, translated in _messages(archive, name):
                yield {"original": text, "translated": translated, "catalogue": name, "package": package}

    def _catalogues(self, archive: Archive) -> list[str]:
        """Paths of the catalogues: for each place in the package those of the first locale there."""
        locales = _LOCALES.get(self.config.language, (self.config.language,))
        chosen: dict[tuple[str, str], str] = {}
        for locale in locales:
            for name in archive.names:
                path = PurePosixPath(name)
                if path.suffix == ".po" and path.parent.name == "LC_MESSAGES" and path.parts[-3] == locale:
                    chosen.setdefault((str(path.parents[2]), path.name), name)
        return sorted(chosen.values())


def _messages(archive: Archive, name: str) -> Iterator[tuple[str, str]]:
    """Originals and what they are in the other language, in the catalogue's order."""
    import polib

    with archive.open(name) as file:
        content = file.read()
    try:
        catalogue = polib.pofile(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"cannot be read as a catalogue ({error})", where=f"{archive.label}:{name}") from error
    for entry in catalogue:
        if entry.obsolete or entry.fuzzy:
            continue
        forms = [entry.msgstr_plural[number] for number in sorted(entry.msgstr_plural)]
        pairs = [(entry.msgid, entry.msgstr)]
        if forms:  # a language without a plural has one form, which is that of many
            pairs = [(entry.msgid_plural, forms[-1])]
            pairs = [(entry.msgid, forms[0]), *pairs] if len(forms) > 1 else pairs
        for text, translated in pairs:
            if text.strip() and translated.strip():
                yield text, translated
