"""Fetch the message catalogues of packages: texts of user interfaces in two languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, ClassVar

from textmill.config.section import Section
from textmill.errors import UserError
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.packages import PackagesSource, PackagesSourceConfig

_LOCALES = {"zh": ("zh_Hans", "zh_CN")}
"""Locale names of a language whose catalogues do not use its code; the first one present counts."""


class CataloguesSourceConfig(PackagesSourceConfig):
    """Options: packages and language.

    Attributes:
        language: ISO 639-1 code.
    """

    language: str


class CataloguesSource(PackagesSource):
    """Read messages of gettext catalogues (`.po`): `original`, `translated`, and the `catalogue`.

    Untranslated, fuzzy and obsolete messages are skipped. A message with a plural gives two rows:
    the singular, and the plural with its last form.
    """

    Config: ClassVar[type[Section]] = CataloguesSourceConfig
    config: CataloguesSourceConfig

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Yield the messages; see `PackagesSource.rows`.

        Raises:
            UserError: The package has no catalogue of the language, or an unreadable one.
        """
        names = self._catalogues(archive)
        if not names:
            message = f"has no message catalogue in the language {self.config.language!r}"
            fix = "Choose another language, or remove the package from the list"
            raise UserError(message, where=archive.label, fix=fix)
        for name in names:
            for text, translated in _messages(archive, name):
                yield {"original": text, "translated": translated, "catalogue": name, "package": package}

    def _catalogues(self, archive: Archive) -> list[str]:
        """Return the paths of the catalogues: in each folder those of the first locale present."""
        locales = _LOCALES.get(self.config.language, (self.config.language,))
        chosen: dict[tuple[str, str], str] = {}
        for locale in locales:
            for name in archive.names:
                path = PurePosixPath(name)
                if path.suffix == ".po" and path.parent.name == "LC_MESSAGES" and path.parts[-3] == locale:
                    chosen.setdefault((str(path.parents[2]), path.name), name)
        return sorted(chosen.values())


def _messages(archive: Archive, name: str) -> Iterator[tuple[str, str]]:
    """Yield messages in both languages in the catalogue's order."""
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
        if forms:  # a language without a plural has one form, that of the plural
            pairs = [(entry.msgid_plural, forms[-1])]
            pairs = [(entry.msgid, forms[0]), *pairs] if len(forms) > 1 else pairs
        for text, translated in pairs:
            if text.strip() and translated.strip():
                yield text, translated
